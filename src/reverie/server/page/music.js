/** Music: clips from one prompt or between two, played with their spectrogram, once, in a loop, or without end. */

import { run } from "./api.js";
import { $, choose, dataUrl, fields, fill, make, toast } from "./dom.js";
import { language, t } from "./i18n.js";
import { Player, coloured, decode, recordBy, wav } from "./player.js";
import { Carried } from "./settings.js";

const TUNES = {
  en: ["jazz saxophone with drums", "funk bass with drums", "piano solo, minor", "techno synth with drums", "harp solo"],
  zh: ["爵士萨克斯和鼓", "放克贝斯和鼓", "钢琴独奏", "电子合成器和鼓", "竖琴独奏"],
};
const WANDER = 0.25; // of the way between two prompts from clip to clip
const AHEAD = 2; // clips that are made before they are needed

const HELD = ["prompt", "to", "alpha", "bpm", "seconds", "steps", "seed", "loop", "init", "strength"];

let player, carried;
let seedSound = null; // a WAV file's data URL, or its name on the server
let endless = false;

const form = () => $("#tune");

export function open() {
  player = new Player($("#spectrogram"), nowPlaying);
  carried = new Carried($("#music-carried"), HELD);
  form().onsubmit = (event) => {
    event.preventDefault();
    playOnce();
  };
  $("#endless").onclick = () => (endless ? stop() : wander());
  $("#toggle").onclick = async () => ($("#toggle").textContent = t((await player.toggle()) ? "pause" : "goOn"));
  $("#seed-sound").onclick = async () => {
    if (seedSound) return forget();
    for (const file of await choose("audio/*")) begin(file, file.name);
  };
  recordBy($("#record"), microphone, (sound) => begin(sound, t("record")));
  recordBy($("#keep"), async () => player.listen(), offer);
  document.addEventListener("language", suggest);
  suggest();
}

function suggest() {
  $("#tunes").replaceChildren(
    ...TUNES[language()].map((tune) => make("button", { type: "button", className: "chip", textContent: tune, onclick: () => [(form().elements.prompt.value = tune), playOnce()] })),
  );
}

/** Return the request that the form makes. */
function asked() {
  const { to, alpha, strength, ...request } = { ...carried.fields, ...fields(form()) };
  if (to) Object.assign(request, { to: [{ prompt: to }] }, !request.walk && { alpha });
  if (!seedSound) return request;
  const { seconds, bpm, ...over } = request;
  return { ...over, init: seedSound, strength };
}

async function makeClip(request, keep) {
  const job = await run($("#music-work"), { kind: "music", request, options: { formats: ["wav", "png"], keep } });
  if (!job) return null;
  const [sound, picture] = ["audio/", "image/"].map((type) => job.files.find((file) => file.type.startsWith(type)));
  const image = picture && coloured(await load(picture.url));
  return { buffer: await decode(player.context, sound.url), image, sound, job };
}

async function load(url) {
  const image = make("img", { src: url });
  await image.decode();
  return image;
}

async function playOnce() {
  stop();
  player.wake();
  const clip = await makeClip(asked(), true);
  if (!clip) return;
  player.stop();
  player.add(clip, { repeat: clip.job.request.loop });
}

function nowPlaying({ job, sound, buffer }) {
  $("#score").hidden = false;
  $(".roll .ghost").hidden = true;
  $("#toggle").textContent = t("pause");
  const words = [job.request.prompt, ...(job.request.to ?? []).map((stop) => stop.prompt ?? stop)].join(" → ");
  $("#playing").textContent = t("playing", words, job.request.seed, buffer.duration.toFixed(1));
  Object.assign($("#music-save"), { href: sound.url, download: sound.name });
}

/** Play without end: clips of whole bars, made ahead, each following the one before, between two prompts or from seed to seed. */
async function wander() {
  setEndless(true);
  player.wake();
  let seed = fields(form()).seed ?? Math.floor(Math.random() * 2 ** 31);
  let way = WANDER;
  while (endless) {
    const request = { ...asked(), loop: true, seed };
    const clip = await makeClip(request, false);
    if (!clip || !endless) break;
    player.add(clip, { repeat: true, follow: true });
    if (request.to) way = step(way);
    else seed += 1;
    while (endless && player.waiting >= AHEAD) await new Promise((resolve) => setTimeout(resolve, 200));
  }
  setEndless(false);
}

/** Move the slider on, and turn at its ends. */
function step(way) {
  const slider = form().elements.alpha;
  const next = Number(slider.value) + way;
  if (next < 0 || next > 1) return step(-way);
  slider.value = next;
  return way;
}

function setEndless(on) {
  endless = on;
  $("#endless").setAttribute("aria-pressed", on);
  $("#endless").textContent = t(on ? "stop" : "endless");
}

function stop() {
  setEndless(false);
  player.stop();
}

// A sound to start from

async function begin(blob, name) {
  try {
    const buffer = await decode(player.context, blob);
    startFrom(await dataUrl(wav(buffer)), name);
  } catch {
    toast(t("notSound", name));
  }
}

function startFrom(sound, name) {
  seedSound = sound;
  $("#seed-name").textContent = name;
  $("#seed-sound").textContent = t("forgetSound");
  $("#sound-strength").hidden = false;
}

function forget() {
  seedSound = null;
  $("#seed-name").textContent = "";
  $("#seed-sound").textContent = t("seedSound");
  $("#sound-strength").hidden = true;
}

/** Ask for the microphone; resolves to its stream, or to null where it is refused. */
async function microphone() {
  try {
    return await navigator.mediaDevices.getUserMedia({ audio: true });
  } catch {
    return toast(t("noMicrophone"));
  }
}

/** Offer a recording of what was played, in the format that the browser records. */
function offer(recording) {
  const [link, format] = [$("#recording"), recording.type.match(/\w+\/(\w+)/)?.[1] ?? "webm"];
  URL.revokeObjectURL(link.href);
  Object.assign(link, { href: URL.createObjectURL(recording), download: `reverie.${format}`, hidden: false });
  link.focus();
}

/** Put a request for music into the room; returns notes. */
export function use(request) {
  const [stop, ...others] = request.to ?? [];
  fill(form(), { seed: "", loop: false, ...request, to: stop?.prompt ?? stop ?? "", alpha: request.alpha ?? 0 });
  carried.take(request);
  if (request.init) startFrom(request.init.path ?? request.init.name ?? request.init, request.init.name ?? request.init);
  else forget();
  return others.length ? [t("notTaken", others.map((one) => one.prompt ?? one).join(", "))] : [];
}
