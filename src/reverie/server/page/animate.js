/** Animate: keyframes, a strip that fills while the film is drawn, and the film. */

import { chosenModel, run } from "./api.js";
import { $, $$, choose, fields, fill, make, onFiles } from "./dom.js";
import { downloadLinks, shrink } from "./files.js";
import { language, t, translate } from "./i18n.js";
import { Carried } from "./settings.js";

const EASINGS = ["linear", "smooth", "ease_in", "ease_out", "hold", "jump"];
const BEGIN = { en: ["a bear", "an apple"], zh: ["一只熊", "一个苹果"] };
const FORMATS = ["mp4", "webm", "gif"];
const HELD = ["keyframes", "seconds", "frames", "fps", "steps", "seed", "easing", "loop", "ping_pong", "fit"];

let carried;

export function open() {
  const form = $("#film");
  carried = new Carried($("#film-carried"), HELD);
  form.elements.easing.append(...EASINGS.map((name) => translatable("option", { value: name }, name)));
  BEGIN[language()].forEach((prompt) => add({ prompt }));
  $("#add-keyframe").onclick = () => add({}).querySelector("input").focus();
  form.onsubmit = (event) => {
    event.preventDefault();
    film(form);
  };
  document.addEventListener("language", label);
}

function translatable(tag, properties, key) {
  const element = make(tag, properties);
  element.dataset.t = key;
  return element;
}

/** Add a keyframe: a prompt, perhaps a picture, and whatever else it says. */
function add({ prompt = "", image, ...more }) {
  const input = make("input", { value: prompt, autocomplete: "off", maxLength: 2000 });
  const picture = make("button", { type: "button", className: "thumb icon" });
  const item = make("li", {}, picture, input, make("button", { type: "button", className: "icon remove", textContent: "×" }));
  item.more = more;
  const lay = async (blob) => hang(item, await shrink(blob));
  if (image) hang(item, image.name ?? image);
  picture.onclick = async () => {
    if (item.dataset.image) return hang(item, null);
    (await choose("image/*")).slice(0, 1).forEach(lay);
  };
  onFiles(item, (files) => lay(files[0]));
  item.querySelector(".remove").onclick = () => {
    item.remove();
    label();
  };
  $("#keyframes").append(item);
  label();
  return item;
}

/** Hang a picture on a keyframe, by its data URL or its name on the server; null takes it off. */
function hang(item, image) {
  item.dataset.image = image ?? "";
  const src = image?.startsWith("data:") ? image : `api/files/${image}`;
  item.querySelector(".thumb").replaceChildren(image ? make("img", { src, alt: "" }) : "+");
}

function label() {
  $$("#keyframes li").forEach((item, at) => {
    const [picture, input, remove] = item.children;
    if (!item.dataset.image) picture.textContent = "+";
    picture.setAttribute("aria-label", (picture.title = t("keyframePicture", at + 1)));
    input.setAttribute("aria-label", t("keyframe", at + 1));
    input.placeholder = t("keyframeHint");
    remove.setAttribute("aria-label", (remove.title = t("removeKeyframe", at + 1)));
  });
  translate($("#film"));
}

function asked(form) {
  const request = { ...carried.fields, ...fields(form) };
  request.keyframes = $$("#keyframes li").map((item) => {
    const keyframe = { ...item.more, prompt: item.querySelector("input").value };
    if (item.dataset.image) keyframe.image = item.dataset.image;
    return keyframe;
  });
  if (request.keyframes.some((one) => one.image)) request.fit = "crop"; // whatever their sizes
  return request;
}

async function film(form) {
  $("#frames").replaceChildren();
  $("#player").hidden = true;
  $("#player").pause();
  const body = { kind: "animation", request: asked(form), model: chosenModel(), options: { formats: FORMATS, previews: 1 } };
  const job = await run($("#film-work"), body, { preview: ({ image }) => fillStrip(image) });
  if (job) play(job.files);
}

/** Hang a frame at the end of the strip, and show it. */
function fillStrip(image) {
  const strip = $("#frames");
  strip.append(make("img", { src: image, alt: t("frame", strip.children.length + 1) }));
  strip.scrollLeft = strip.scrollWidth;
  $(".screen .ghost").hidden = true;
  Object.assign($("#frame"), { src: image, hidden: false });
}

function play(files) {
  const player = $("#player");
  player.replaceChildren(...files.filter(({ type }) => type.startsWith("video")).map(({ url, type }) => make("source", { src: url, type })));
  player.hidden = false;
  $("#frame").hidden = $(".screen .ghost").hidden = true;
  player.load();
  player.play().catch(() => {}); // where the browser lets nothing play by itself, its controls do
  $("#film-files").replaceChildren(...downloadLinks(files));
}

/** Take the request for a picture as a further keyframe, in place of one that is empty. */
export function take({ prompt, seed }) {
  $$("#keyframes li").find((one) => !one.querySelector("input").value)?.remove();
  add({ prompt, seed });
}

/** Put a request for a film into the room; returns notes. */
export function use(request) {
  const seconds = request.frames ? request.frames / (request.fps ?? 20) : request.seconds;
  fill($("#film"), { seed: "", loop: false, ping_pong: false, ...request, ...(seconds && { seconds }) });
  carried.take(request);
  $("#keyframes").replaceChildren();
  request.keyframes.forEach((keyframe) => add(typeof keyframe === "string" ? { prompt: keyframe } : keyframe));
  return [];
}
