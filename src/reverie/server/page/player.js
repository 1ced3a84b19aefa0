/** Plays clips through Web Audio, one after the other without a gap, and shows where in the spectrogram it is. */

const LINE = "#ffffff";
const COLOURS = ["#8fd3ff", "#a99bff", "#ff8fb1", "#ffd58a"]; // from the top, the high tones
const FADE = 0.06; // seconds in which a clip goes over into the next one

export class Player {
  #clips = []; // {clip, source, start, end}
  #shown = null;

  /** `seen(clip)` hears of each clip when it begins to sound. */
  constructor(canvas, seen) {
    Object.assign(this, { canvas, seen });
    this.context = new AudioContext();
    this.out = this.context.destination;
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
  }

  /** Play a clip now, again and again with `repeat`; with `follow` after those before, faded into their loop. */
  add(clip, { repeat = false, follow = false } = {}) {
    const source = new AudioBufferSourceNode(this.context, { buffer: clip.buffer, loop: repeat || follow });
    const gain = new GainNode(this.context);
    source.connect(gain).connect(this.out);
    const last = this.#clips.at(-1);
    const now = this.context.currentTime + 0.05;
    const start = follow && last ? Math.max(now, last.end) : now;
    const end = repeat ? Infinity : start + clip.buffer.duration;
    source.start(start);
    if (follow) {
      gain.gain.setValueAtTime(0, start);
      gain.gain.linearRampToValueAtTime(1, start + FADE);
      gain.gain.setValueAtTime(1, end);
      gain.gain.linearRampToValueAtTime(0, end + FADE); // where the loop begins anew, in time with the next clip
      source.stop(end + FADE);
    }
    this.#clips = [...this.#clips.filter((one) => one.end + FADE > now), { clip, source, start, end }];
    if (this.#clips.length === 1) this.#shown = null;
    requestAnimationFrame(() => this.#show());
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
    if (now < current.end || this.waiting) {
      cancelAnimationFrame(this.frame);
      this.frame = requestAnimationFrame(() => this.#show());
    }
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
