/** Compare: a heat map of pictures and sentences, what each picture most likely shows, and which word drew what in it. */

import { get, post, run } from "./api.js";
import { $, choose, make, onFiles, toast } from "./dom.js";
import { shrink } from "./files.js";
import { t } from "./i18n.js";

const GUESSES = 5;
const PICTURES = ["text_to_image", "image_to_image", "inpaint", "outpaint"];

export function open() {
  const add = async (files) => {
    const urls = await Promise.all(files.map((file) => shrink(file)));
    urls.filter(Boolean).forEach(hang);
  };
  onFiles($("#comparison"), add);
  $("#choose-pictures").onclick = async () => add(await choose("image/*", true));
  $("#comparison").onsubmit = (event) => {
    event.preventDefault();
    compare();
  };
  $("#words").onclick = explain;
  $("#sentences").value = t("someSentences");
  $("#search").onsubmit = (event) => {
    event.preventDefault();
    search();
  };
  get("api/info").then((info) => ($("#search").hidden = !info.index), () => {});
  takeRecent();
}

/** Begin with what was just drawn, where there is something. */
async function takeRecent() {
  const known = await get("api/gallery?limit=12").catch(() => ({ jobs: [] }));
  const files = known.jobs.filter(({ kind }) => PICTURES.includes(kind)).map((job) => job.files[0]);
  if (!$("#compared").children.length) files.slice(0, 4).forEach(({ name, url }) => hang(url, name));
}

/** Hang a picture up, known to the server by its name or sent as a data URL. */
function hang(url, name) {
  const at = $("#compared").children.length + 1;
  const words = t("takeAway", t("pictureNumber", at));
  const button = make("button", { type: "button", title: words, onclick: () => button.remove() }, make("img", { src: url, alt: words }));
  button.dataset.picture = typeof name === "string" ? name : url;
  $("#compared").append(button);
}

async function compare() {
  const pictures = [...$("#compared").children].map((one) => one.dataset.picture);
  const shown = [...$("#compared").querySelectorAll("img")].map((one) => one.src);
  const texts = $("#sentences").value.split("\n").map((line) => line.trim()).filter(Boolean);
  const place = $("#compare-work");
  place.replaceChildren();
  $("#bars").replaceChildren();
  $("#heat").hidden = true;
  if (!pictures.length && !texts.length) return say("needPictures");
  say("comparing");
  try {
    const likeness = await post("api/compare", { pictures, texts });
    const guesses = pictures.length && texts.length > 1 ? (await post("api/classify", { pictures, labels: texts, top: GUESSES })).guesses : [];
    place.replaceChildren();
    showHeat(likeness, pictures.length ? shown : [], texts.length ? [] : shown);
    $("#bars").replaceChildren(...guesses.map((guess, at) => bars(guess, shown[at], at)));
  } catch (error) {
    place.replaceChildren(make("p", { className: "error", textContent: error.message }));
  }
  return null;
}

function say(key) {
  $("#compare-work").replaceChildren(make("p", { className: "note", role: "status", textContent: t(key) }));
}

function showHeat({ rows, columns, cosines }, rowPictures, columnPictures) {
  const all = cosines.flat();
  const [least, most] = [Math.min(...all), Math.max(...all)];
  const head = (name, picture, scope) => make("th", { scope }, picture ? make("img", { src: picture, alt: name }) : name);
  const cell = (value) => {
    const heat = most > least ? (value - least) / (most - least) : 1;
    const element = make("td", { textContent: value.toFixed(2).replace("-0.00", "0.00"), className: heat > 0.5 ? "hot" : "" });
    element.style.setProperty("--heat", `${Math.round(heat > 0.5 ? 70 + 30 * heat : 80 * heat)}%`); // none between, where no text is legible
    return element;
  };
  const top = make("tr", {}, make("td"), ...columns.map((name, at) => head(name, columnPictures[at], "col")));
  const body = rows.map((name, at) => make("tr", {}, head(name, rowPictures[at], "row"), ...cosines[at].map(cell)));
  $("#heat").replaceChildren(make("table", {}, make("thead", {}, top), make("tbody", {}, ...body)));
  $("#heat").hidden = false;
}

function bars(guess, picture, at) {
  const rows = guess.map(({ label, probability }) =>
    make("li", {}, make("span", { textContent: label }), make("meter", { value: probability, "aria-label": label }), make("output", { textContent: `${Math.round(100 * probability)} %` })),
  );
  return make("figure", { "aria-label": t("likely") }, make("img", { src: picture, alt: t("pictureNumber", at + 1) }), make("ol", {}, ...rows));
}

/** Draw the pictures that say how they were drawn again, and show over each which word went where. */
async function explain() {
  $("#explained").replaceChildren();
  for (const [at, { dataset }] of [...$("#compared").children].entries()) {
    const made = await post("api/inspect", { file: dataset.picture }).catch(() => null);
    if (made === null) toast(t("saysNothing", t("pictureNumber", at + 1)));
    else await explainOne(made);
  }
}

async function explainOne({ kind, model, request }) {
  const job = await run($("#compare-work"), { kind, model, request, options: { explain: true, keep: false } });
  if (job) $("#explained").append(make("img", { src: job.files.at(-1).url, alt: t("explained", request.prompt) }));
}

async function search() {
  try {
    const { hits } = await post("api/search", { text: $("#search-text").value, top: 20 });
    $("#found").replaceChildren(...hits.map(({ name, image, cosine }) => make("img", { src: image, alt: name, title: `${name}: ${cosine.toFixed(2)}` })));
  } catch (error) {
    $("#compare-work").replaceChildren(make("p", { className: "error", textContent: error.message }));
  }
}
