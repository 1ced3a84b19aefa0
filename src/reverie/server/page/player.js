/** Plays clips through Web Audio, one after the other without a gap, and shows where in the spectrogram it is. */

import { t } from "./i18n.js";

const LINE = "#ffffff";
const COLOURS = ["#8fd3ff", "#a99bff", "#ff8fb1", "#ffd58a"]; // from the top, the high tones
const SOON = 0.05; // seconds until a clip sounds
const FADE = 0.06; // seconds in which a clip goes over into the next one

export class Player {
  #clips = []; // {clip, source, gain, start, end}
  #shown = null;

  /** `seen(clip)` hears of each clip when it begins to sound. */
  constructor(canvas, seen) {
    Object.assign(this, { canvas, seen });
    this.context = new AudioContext();
    this.out = new GainNode(this.context);
    this.out.connect(this.context.destination);
  }

  /** Return a stream of all that sounds from now on, as it is heard. */
  listen() {
    const listener = new MediaStreamAudioDestinationNode(this.context);
    this.out.connect(listener);
    return listener.stream;
  }

  /** Let the browser play: to be called while it handles what the user did. */
  wake() {
    this.context.resume();
  }

  /** Pause or go on; resolves to whether it sounds. */
  async toggle() {
    const sounds = this.context.state === "running";
    await (sounds ? this.context.suspend() : this.context.resume());
    return !sounds;
  }

  /** How many clips wait behind the one that sounds. */
  get waiting() {
    return this.#clips.filter(({ start }) => start > this.context.currentTime).length;
  }

  stop() {
    for (const { source } of this.#clips) source.stop();
    this.#clips = [];
    this.#shown = null;
  }

  /**
   * Play a clip once, or again and again with `repeat`: now, or with `follow` where the clip before it ends.
   *
   * A clip that repeats goes on until then in whole rounds, and fades out into its own beginning, in time with the next.
   */
  add(clip, { repeat = false, follow = false } = {}) {
    const source = new AudioBufferSourceNode(this.context, { buffer: clip.buffer, loop: repeat });
    const gain = new GainNode(this.context);
    source.connect(gain).connect(this.out);
    const now = this.context.currentTime + SOON;
    const last = follow ? this.#clips.at(-1) : undefined;
    const start = last ? endOf(last, now) : now;
    if (last) {
      last.end = start;
      fade(last.gain, start, 1, 0);
      fade(gain, start, 0, 1);
      last.source.stop(start + FADE);
    }
    source.start(start);
    const end = repeat ? Infinity : start + clip.buffer.duration;
    this.#clips = [...this.#clips.filter((one) => one.end + FADE > now), { clip, source, gain, start, end }];
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.#show());
  }

  #show() {
    const now = this.context.currentTime;
    const current = this.#clips.findLast(({ start }) => start <= now) ?? this.#clips[0];
    if (!current) return;
    if (current !== this.#shown) {
      this.#shown = current;
      this.seen(current.clip);
    }
    const { buffer, image } = current.clip;
    const at = current.end < now ? 1 : (Math.max(0, now - current.start) / buffer.duration) % 1;
    this.#paint(image, at);
    if (now < current.end || this.waiting) this.frame = requestAnimationFrame(() => this.#show());
  }

  #paint(image, at) {
    const { canvas } = this;
    if (!image) return;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight].map((pixels) => Math.round(pixels * devicePixelRatio));
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0, width, height);
    context.fillStyle = LINE;
    context.fillRect(at * width - 1, 0, 2 * devicePixelRatio, height);
  }
}

/** When a clip is over: where it repeats, after the round that is under way. */
function endOf({ clip, start, end }, now) {
  if (end !== Infinity) return Math.max(end, now);
  return start + Math.max(1, Math.ceil((now - start) / clip.buffer.duration)) * clip.buffer.duration;
}

function fade({ gain }, start, from, to) {
  gain.setValueAtTime(from, start);
  gain.linearRampToValueAtTime(to, start + FADE);
}

/** Give a spectrogram, black on white, colours on black: low tones warm, high ones cold. */
export function coloured(picture) {
  const canvas = Object.assign(document.createElement("canvas"), { width: picture.width, height: picture.height });
  const context = canvas.getContext("2d");
  const cover = (way, paint) => {
    context.globalCompositeOperation = way;
    context.fillStyle = paint;
    context.fillRect(0, 0, canvas.width, canvas.height);
  };
  const colours = context.createLinearGradient(0, 0, 0, canvas.height);
  COLOURS.forEach((colour, at) => colours.addColorStop(at / (COLOURS.length - 1), colour));
  context.drawImage(picture, 0, 0);
  cover("difference", "white");
  cover("multiply", colours);
  return canvas;
}

/** Let a button record: `open()` gives the stream, and `take(blob)` has it once the button is pressed again. */
export function recordBy(button, open, take) {
  const says = button.dataset.t;
  let recorder = null;
  const show = (on) => {
    button.setAttribute("aria-pressed", on);
    button.textContent = t((button.dataset.t = on ? "stopRecording" : says));
  };
  button.onclick = async () => {
    if (recorder) return recorder.stop();
    const stream = await open();
    if (!stream) return null;
    const pieces = [];
    recorder = new MediaRecorder(stream);
    recorder.ondataavailable = ({ data }) => pieces.push(data);
    recorder.onstop = () => {
      for (const track of stream.getTracks()) track.stop();
      recorder = null;
      show(false);
      take(new Blob(pieces, { type: pieces[0]?.type }));
    };
    recorder.start();
    return show(true);
  };
}

/** Decode a sound, of a URL or a file, whatever format the browser reads. */
export async function decode(context, source) {
  const data = typeof source === "string" ? await (await fetch(source)).arrayBuffer() : await source.arrayBuffer();
  return context.decodeAudioData(data);
}

/** Return a decoded sound as a WAV file of one channel and 16 bits. */
export function wav(buffer) {
  const channels = Array.from({ length: buffer.numberOfChannels }, (_, at) => buffer.getChannelData(at));
  const view = new DataView(new ArrayBuffer(44 + 2 * buffer.length));
  const text = (at, words) => [...words].forEach((letter, k) => view.setUint8(at + k, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * buffer.length, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, buffer.sampleRate, true);
  view.setUint32(28, 2 * buffer.sampleRate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * buffer.length, true);
  for (let at = 0; at < buffer.length; at += 1) {
    const mean = channels.reduce((sum, channel) => sum + channel[at], 0) / channels.length;
    view.setInt16(44 + 2 * at, Math.max(-1, Math.min(1, mean)) * 32767, true);
  }
  return new Blob([view], { type: "audio/wav" });
}
