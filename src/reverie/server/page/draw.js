/** Draw: a prompt, a sheet to sketch on, and the picture that comes of both. */

import { Refusal, chosenModel, get, inspect, run } from "./api.js";
import { Sheet } from "./canvas.js";
import { $, $$, choose, fields, fill, make, onFiles, toast } from "./dom.js";
import { language, t } from "./i18n.js";
import { Live } from "./live.js";
import { Carried, chosenStyle, keepStyle, offerLoras, offerStyles } from "./settings.js";

const TOOLS = ["brush", "eraser", "line", "rectangle", "ellipse", "fill"];
const SWATCHES = { black: "#1b1b1b", white: "#fdfdfb", brown: "#8a5a2b", red: "#d8392b", yellow: "#f2c23e", green: "#3f9e4d", blue: "#3b7dd8", pink: "#e58fb0" };
const STARTERS = {
  en: ["🐼 a panda on a green background", "🚀 a rocket on a blue background", "🎹 a piano", "🍎 a red apple", "🐢 a small turtle on a yellow background"],
  zh: ["🐼 绿色背景上的一只熊猫", "🚀 蓝色背景上的火箭", "🎹 钢琴", "🍎 苹果", "🐢 黄色背景上的小龟"],
};
const [LEAST, MOST] = [64, 2048]; // pixels of a side
const TEMPLATE = /\{[^{}]*\||__.+__|\$\{|\d\$\$/; // {a|b}, __wildcard__ and such: elsewhere # begins no comment
const HELD = ["prompt", "negative", "sampler", "schedule", "steps", "guidance", "seed", "width", "height", "count", "hires", "init", "mask", "strength"];
const [OF_INPAINT, OF_OUTPAINT] = [["mask_blur", "only_masked", "padding", "fill"], ["left", "right", "top", "bottom"]];
const RECOMMENDED = ["steps", "sampler", "schedule"]; // by models; their guidance is taken where the form says none
const LIVE_STEPS = 4;
const NEAR = 0.2; // of the way to another seed: a variation

let sheet, live, carried;
let models = [];
let defaults = {}; // of samplers, schedules and steps, where a model recommends none
let upscalers = []; // files of the server
let mostSteps = 150;
let shown = null; // {file, kind, request} of the picture that is seen
const ask = () => $("#ask");

export function open() {
  sheet = new Sheet($("#paper"));
  live = new Live(liveRequest, showLive, toast);
  carried = new Carried($("#carried"), [...HELD, ...OF_OUTPAINT]);
  buildTools();
  bindSheet();
  bindAsk();
  bindDoings();
  loadNames();
  document.addEventListener("language", () => [nameThings(), speak()]);
  nameThings();
  speak();
}

// The sheet's tools

function buildTools() {
  for (const tool of TOOLS) {
    const input = make("input", { type: "radio", name: "tool", value: tool, checked: tool === sheet.tool, onchange: () => (sheet.tool = tool) });
    input.dataset.tLabel = tool;
    $("#tools").append(make("label", { className: "icon" }, input, icon(tool)));
  }
  for (const [name, colour] of Object.entries(SWATCHES)) {
    const swatch = make("button", { type: "button", className: "swatch", "data-t-label": name, onclick: () => pick(colour) });
    swatch.style.background = colour;
    $("#swatches").append(swatch);
  }
  $("#colour").oninput = ({ target }) => pick(target.value);
  $("#thickness").oninput = ({ target }) => (sheet.thickness = Number(target.value));
  $("#masking").onchange = ({ target }) => (sheet.masking = target.checked);
  $("#undo").onclick = () => sheet.undo();
  $("#redo").onclick = () => sheet.redo();
  $("#clear").onclick = () => sheet.clear();
  $("#upload").onclick = async () => (await choose("image/*")).forEach(putOnSheet);
}

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `icons.svg#${name}`);
  svg.append(use);
  return svg;
}

function pick(colour) {
  sheet.colour = $("#colour").value = colour;
  if (sheet.tool === "eraser") $('#tools [value="brush"]').click();
}

function bindSheet() {
  sheet.addEventListener("change", ({ detail }) => {
    live.changed(detail.done);
    if (!detail.done) return ($(".paper .ghost").hidden = true);
    $(".paper .ghost").hidden = !sheet.empty;
    $("#undo").disabled = !sheet.undoable;
    $("#redo").disabled = !sheet.redoable;
    document.body.classList.toggle("sketched", !sheet.empty);
  });
  $("#undo").disabled = $("#redo").disabled = true;
  $("#strength").oninput = () => [sayFreedom(), live.changed()];
  onFiles($(".paper"), (files) => files.forEach(putOnSheet));
  document.addEventListener("keydown", (event) => {
    const writing = event.target.matches("input:not([type=range]):not([type=radio]), textarea");
    if (writing || $("#room-draw").hidden || !(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z") return;
    event.preventDefault();
    if (event.shiftKey) sheet.redo();
    else sheet.undo();
  });
}

async function putOnSheet(blob) {
  try {
    sheet.place(await createImageBitmap(blob));
  } catch {
    toast(t("notPicture", blob.name ?? ""));
  }
}

const strength = () => Number($("#strength").value);

function sayFreedom() {
  const key = strength() === 0 ? "freedomStay" : strength() < 0.5 ? "freedomNear" : strength() < 0.85 ? "freedomGuide" : "freedomFree";
  $("#freedom-says").textContent = t(key);
}

// What is asked

const randomSeed = () => Math.floor(Math.random() * 2 ** 31);

/** What a job is told of the prompts on the form: whether they hold a template, and what style goes with them. */
function worded() {
  const { prompt = "", negative = "" } = fields(ask());
  return { style: chosenStyle(), dynamic: [prompt, negative].some((words) => TEMPLATE.test(words)) };
}

/** Return what the form asks for; while it is drawn live, always the same seed. */
function onForm() {
  const { best_of, hires, count, ...request } = { ...carried.fields, ...fields(ask()) };
  if (live.on) request.seed ??= liveSeed;
  return { best_of, request, more: { count, ...(hires && { hires: { scale: hires } }) } };
}

/** Return the kind and the fields of the request that the form and the sheet make. */
function asked() {
  const { best_of, request, more } = onForm();
  if (sheet.empty && sheet.masked) toast(t("maskAlone"));
  return { best_of, ...onSheet({ ...request, ...more }) };
}

/** The model that draws: the chosen one, or the default. */
const drawing = () => models.find(({ name }) => name === chosenModel()) ?? models.find((one) => one.makes === "pictures" && one.default);

/** Give the sheet the size of the picture: as asked for, or the model's own. */
function resize() {
  const own = drawing()?.size ?? 256;
  const { width = own, height = own } = fields(ask());
  if (Math.min(width, height) >= LEAST && Math.max(width, height) <= MOST) sheet.resize(width, height);
}

/** Return the settings that a model recommends. */
const recommended = (model) => Object.fromEntries(RECOMMENDED.filter((name) => model?.[name]).map((name) => [name, model[name]]));

/** Take the settings that the model recommends, and its size; offer what it can. */
function suit() {
  $("#vary").hidden = !drawing()?.varies;
  fill(ask(), { ...defaults, ...recommended(drawing()) });
  resize();
}

function onSheet(whole) {
  const request = Object.fromEntries(Object.entries(whole).filter(([name]) => !OF_INPAINT.includes(name)));
  if (sheet.empty) return { kind: "text_to_image", request };
  const free = strength();
  if (free === 0 && !sheet.masked) return { kind: "inpaint", request: { ...whole, init: sheet.transparent(), strength: 1 } };
  const drawn = { init: sheet.filled(), strength: free || 1, steps: Math.min(mostSteps, Math.ceil(request.steps / (free || 1))) };
  if (!sheet.masked) return { kind: "image_to_image", request: { ...request, ...drawn } };
  return { kind: "inpaint", request: { ...whole, ...drawn, mask: sheet.maskUrl() } };
}

function bindAsk() {
  ask().onsubmit = (event) => {
    event.preventDefault();
    draw();
  };
  ask().addEventListener("invalid", () => ($("details", ask()).open = true), true); // or nobody sees what is wrong
  ask().oninput = ({ target }) => target.name && live.changed();
  ask().onchange = resize;
  $("#style").onchange = ({ target }) => offerStyles(target.value);
  $("#keep-style").onclick = () => keepStyle(ask().elements.prompt.value.trim());
  $("#model").onchange = suit;
  $("#live").onchange = ({ target }) => (target.checked ? goLive() : live.close());
  $("#restore").onclick = async () => (await choose("image/*,video/*,audio/*")).forEach(restore);
  onFiles($("#main"), (files) => location.hash.startsWith("#draw") && restore(files[0]));
  $("#concept-filter").oninput = filterThings;
}

/** Take the settings that a file holds, in the room for it. */
async function restore(file) {
  try {
    const { kind, request, notes } = await inspect(file);
    document.dispatchEvent(new CustomEvent("reuse", { detail: { kind, request, notes: [t("restored", file.name), ...notes] } }));
  } catch (error) {
    toast(error instanceof Refusal && !error.field ? error.message : t("saysNothing", file.name));
  }
}

/** Put a request into the form and on the sheet; resolves to notes on what could not be. */
export async function use(request) {
  const { strength = 1, steps } = request.init ? request : {};
  const open = { negative: "", seed: "", guidance: "", width: "", height: "", best_of: "" };
  const taken = steps ? { steps: Math.max(1, Math.round(steps * strength)) } : {};
  fill(ask(), { ...open, ...request, ...taken, count: request.count ?? 1, hires: request.hires?.scale });
  carried.take(request);
  offerStyles(""); // its words are in the prompt
  const lost = OF_OUTPAINT.filter((name) => request[name]);
  resize();
  sheet.clear();
  const notes = lost.length ? [t("notTaken", lost.join(", "))] : [];
  if (!request.init) return notes;
  $("#strength").value = request.kind === "inpaint" && !request.mask && strength === 1 ? 0 : strength;
  sayFreedom();
  try {
    sheet.load(await fetched(request.init), request.mask && (await fetched(request.mask)));
  } catch {
    notes.push(t("initMissing"));
  }
  return notes;
}

/** Fetch a picture that a request names, or as files record it. */
async function fetched(named) {
  const answer = await fetch(`api/files/${encodeURIComponent(named.path ?? named.name ?? named)}`);
  return createImageBitmap(await answer.blob());
}

// What comes

async function draw(changes = {}, options = {}) {
  const { kind, request, best_of, ...words } = changes.kind ? changes : { ...asked(), ...worded() };
  $("#invite").hidden = true;
  const job = await run(
    $("#draw-work"),
    { kind, request, ...words, model: chosenModel(), options: { previews: 2, best_of, ...options } },
    { preview: ({ image }) => see(image, request.prompt) },
  );
  if (!job) return shown && show(shown);
  const pieces = job.files.map((file, at) => ({ file, ...pictured(job, at) }));
  $("#recent").prepend(...pieces.map(thumbnail));
  show(options.explain ? pieces.at(-1) : pieces[0]);
}

/** What a picture is called: by its words, or as one that varies another. */
const titled = ({ request }) => t("drawn", request.prompt || (request.vary?.length ? t("varied") : ""), request.seed);

function thumbnail(piece) {
  const title = titled(piece);
  return make("button", { type: "button", title, onclick: () => show(piece) }, make("img", { src: piece.file.url, alt: title, loading: "lazy" }));
}

function see(url, words) {
  const picture = $("#picture");
  $("#invite").hidden = true;
  Object.assign(picture, { src: url, alt: words, hidden: false });
}

function show(piece) {
  shown = piece;
  see(piece.file.url, titled(piece));
  $("#doings").hidden = false;
  Object.assign($("#save"), { href: piece.file.url, download: piece.file.name });
}

/** Let the server's first upscaler enlarge the picture that is seen. */
async function enlarge() {
  const piece = shown;
  const job = await run($("#draw-work"), { kind: "upscale", request: { picture: piece.file.name, upscaler: upscalers[0], scale: 2 } });
  if (!job) return;
  const larger = { ...piece, file: job.files[0] };
  $("#recent").prepend(thumbnail(larger));
  show(larger);
}

/** The kind of a job and the request of its picture number `at`, alone: of a template, what it gave. */
function pictured({ kind, request, result }, at) {
  const { prompt, negative } = result?.requests?.[at] ?? result?.request ?? request;
  const alone = { ...request, prompt, negative, seed: result?.seeds?.[at] ?? request.seed, count: 1 };
  if (request.variation) alone.variation = { ...request.variation, seed: request.variation.seed + at };
  return { kind, request: alone };
}

/** The kind and the request of the picture that is seen. */
const single = () => ({ kind: shown.kind, request: shown.request });

function bindDoings() {
  $("#variations").onclick = () => {
    const { kind, request } = single();
    draw({ kind, request: { ...request, count: 4, variation: { seed: randomSeed(), strength: NEAR } } });
  };
  $("#vary").onclick = () => {
    const { request } = onForm();
    draw({ kind: "text_to_image", request: { ...request, prompt: "", seed: randomSeed(), vary: [shown.file.name] } });
  };
  $("#explain").onclick = () => draw(single(), { explain: true });
  $("#enlarge").onclick = enlarge;
  $("#paint-over").onclick = async () => putOnSheet(await (await fetch($("#picture").src)).blob());
  $("#to-film").onclick = () => document.dispatchEvent(new CustomEvent("keyframe", { detail: single().request }));
}

// Live

let liveSeed = 0;

function goLive() {
  liveSeed = randomSeed();
  live.open();
}

/** The model that draws live: the chosen one, or the bundled one that takes the fewest steps. */
function quickest() {
  if (chosenModel()) return drawing();
  const quick = models.filter((one) => one.makes === "pictures" && one.bundled && one.steps);
  return quick.sort((a, b) => a.steps - b.steps)[0] ?? drawing();
}

function liveRequest() {
  const [model, { request }] = [quickest(), onForm()];
  const steps = Math.min(model?.steps ?? LIVE_STEPS, LIVE_STEPS);
  return { model: model?.name ?? null, ...worded(), ...onSheet({ ...request, ...recommended(model), steps }) };
}

function showLive({ image, seconds }) {
  see(image, ask().elements.prompt.value);
  $("#doings").hidden = true;
  $("#picture").dataset.seconds = seconds;
}

// What is known

async function loadNames() {
  try {
    const asking = ["api/samplers", "api/info", "api/adapters"].map(get);
    const [{ samplers, schedules, defaults: own }, known, adapters] = await Promise.all(asking);
    [models, defaults, upscalers] = [known.models, own, adapters.upscalers];
    $("#enlarge").hidden = !upscalers.length;
    mostSteps = known.limits.steps;
    const option = ({ name, label }) => make("option", { value: name, textContent: label });
    ask().elements.sampler.replaceChildren(...samplers.map(option));
    ask().elements.schedule.replaceChildren(...schedules.map(option));
    suit();
    offerStyles("", known.styles);
    offerLoras(adapters.loras, ask().elements.prompt);
  } catch (error) {
    toast(error.message);
  }
}

let things = [];

async function nameThings() {
  if (!things.length) things = await get("api/concepts").then((known) => known.concepts, () => []);
  $(".knows summary").textContent = t("knows", things.length);
  $("#concepts").replaceChildren(
    ...things.map((thing) => {
      const name = thing[language()][0];
      return make("button", { type: "button", className: "chip", textContent: `${thing.emoji} ${name}`, onclick: () => say(name) });
    }),
  );
  filterThings();
}

function filterThings() {
  const wanted = $("#concept-filter").value.toLowerCase();
  for (const chip of $$("#concepts .chip")) chip.hidden = !chip.textContent.toLowerCase().includes(wanted);
}

function say(prompt) {
  ask().elements.prompt.value = prompt;
  if (live.on) live.changed();
  else draw();
}

function speak() {
  $("#starters").replaceChildren(
    ...STARTERS[language()].map((text) =>
      make("button", { type: "button", className: "chip", textContent: text, onclick: () => say(text.slice(text.indexOf(" ") + 1)) }),
    ),
  );
  offerStyles();
  sayFreedom();
}
