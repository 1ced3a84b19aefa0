/** Gallery: what was made, with its request; to look at, use again, download and delete. */

import { get, remove } from "./api.js";
import { $, make } from "./dom.js";
import { downloadLinks } from "./files.js";
import { t } from "./i18n.js";

const KINDS = ["", "text_to_image", "image_to_image", "inpaint", "animation", "music"];
const PAGE = 48;
const PAUSE = 250; // milliseconds after the last key, before it is looked up

let next = null;
let timer;

export function open() {
  $("#gallery-filter").onsubmit = (event) => event.preventDefault();
  $("#gallery-text").oninput = () => {
    clearTimeout(timer);
    timer = setTimeout(load, PAUSE);
  };
  $("#gallery-kind").onchange = () => load();
  $("#more").onclick = () => load(next);
  $("#piece").onclick = ({ target }) => target === $("#piece") && $("#piece").close();
  document.addEventListener("language", nameKinds);
  nameKinds();
}

/** Look up what is there; the room is entered. */
export const enter = () => load();

function nameKinds() {
  const kind = $("#gallery-kind");
  const chosen = kind.value;
  kind.replaceChildren(...KINDS.map((name) => make("option", { value: name, textContent: t(name || "anything") })));
  kind.value = chosen;
}

async function load(before = null) {
  const asked = new URLSearchParams({ limit: PAGE });
  const [query, kind] = [$("#gallery-text").value.trim(), $("#gallery-kind").value];
  if (query) asked.set("query", query);
  if (kind) asked.set("kind", kind);
  if (before) asked.set("before", before);
  const place = $("#gallery-work");
  try {
    const found = await get(`api/gallery?${asked}`);
    next = found.next;
    if (!before) $("#shelf").replaceChildren();
    $("#shelf").append(...found.jobs.map(card));
    $("#more").hidden = !next;
    place.replaceChildren();
    if (!$("#shelf").children.length) place.append(make("p", { className: "invite", textContent: t(query || kind ? "nothingFound" : "emptyGallery") }));
  } catch (error) {
    place.replaceChildren(make("p", { className: "error", textContent: error.message }));
  }
}

/** What a job was asked for; of an enlarged picture, what it was drawn by. */
const asked = ({ kind, request, result }) => (kind === "upscale" ? (result.request ?? {}) : request);

/** What a job was asked for, in words. */
function words(job) {
  const request = asked(job);
  const stops = request.keyframes ?? [request, ...(request.to ?? [])];
  return stops.map((stop) => stop.prompt ?? stop).filter((words) => words && words !== request).join(" → ") || t(request.vary?.length ? "varied" : "anything");
}

function look(file, text, large) {
  if (file.type.startsWith("video")) return make("video", { src: file.url, muted: true, loop: true, preload: "metadata", playsInline: true, controls: large, autoplay: large, "aria-label": text });
  if (file.type.startsWith("audio")) return make("audio", { src: file.url, controls: true, "aria-label": text });
  return make("img", { src: file.url, alt: text, loading: "lazy" });
}

/** The files of a job that are worth looking at; of one film in several formats the first. */
function views(job) {
  const film = job.files.find(({ type }) => type.startsWith("video")) ?? job.files.find(({ type }) => type === "image/gif");
  return film && job.kind === "animation" ? [film] : job.files.filter(({ type }) => type.startsWith("image"));
}

function card(job) {
  const text = words(job);
  const cover = views(job)[0] ?? job.files[0];
  const button = make("button", { type: "button", className: "card", onclick: () => show(job, button) }, look(cover, text, false), make("span", { textContent: text }));
  if (cover.type.startsWith("video")) {
    button.onpointerenter = button.onfocus = () => button.firstChild.play().catch(() => {});
    button.onpointerleave = button.onblur = () => button.firstChild.pause();
  }
  return button;
}

function show(job, button) {
  const text = words(job);
  const dialog = $("#piece");
  const act = (key, action, name = "quiet") => make("button", { type: "button", className: name, textContent: t(key), onclick: action });
  const reuse = () => {
    dialog.close();
    document.dispatchEvent(new CustomEvent("reuse", { detail: job }));
  };
  const drop = async () => {
    try {
      await remove(`api/gallery/${job.id}`);
      button.remove();
      dialog.close();
    } catch (error) {
      dialog.append(make("p", { className: "error", textContent: error.message }));
    }
  };
  const sounds = job.files.filter(({ type }) => type.startsWith("audio"));
  dialog.replaceChildren(
    make("div", { className: "views" }, ...[...views(job), ...sounds].map((file) => look(file, text, true))),
    make("p", { className: "words", textContent: text }),
    make("dl", {}, ...facts(job).flatMap(([key, value]) => [make("dt", { textContent: t(key) }), make("dd", { textContent: value })])),
    make("div", { className: "bar" }, ...(job.kind === "upscale" ? [] : [act("reuse", reuse, "primary")]), ...downloadLinks(job.files), act("delete", drop), act("close", () => dialog.close())),
  );
  dialog.showModal();
}

function facts(job) {
  const [request, { model }] = [asked(job), job];
  const told = ["negative", "steps", "sampler", "guidance", "seed", "bpm", "seconds", "fps"].map((key) => [key, request[key]]);
  return [["model", model], ...told].filter(([, value]) => value !== undefined && value !== null && value !== "");
}
