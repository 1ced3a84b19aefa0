/** The page: its rooms, which model, which language, light or dark. */

import * as animate from "./animate.js";
import { get } from "./api.js";
import * as compare from "./compare.js";
import { $, $$, make, toast } from "./dom.js";
import * as draw from "./draw.js";
import * as gallery from "./gallery.js";
import { switchLanguage, t, translate } from "./i18n.js";
import * as music from "./music.js";

const ROOMS = { draw, animate, compare, music, gallery };
const ROOM_OF = { animation: "animate", music: "music" };
const opened = new Set();

/** Show the room that the address names. */
function enter() {
  const name = location.hash.slice(1) in ROOMS ? location.hash.slice(1) : "draw";
  for (const room of $$("main > section")) room.hidden = room.id !== `room-${name}`;
  for (const link of $$("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${t(name)} · reverie`;
  if (!opened.has(name)) ROOMS[name].open();
  opened.add(name);
  ROOMS[name].enter?.();
  translate();
}

/** Enter a room by its name, and return it. */
function go(name) {
  history.pushState(null, "", `#${name}`);
  enter();
  return ROOMS[name];
}

function chooseTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
}

function bind() {
  $("#language").onclick = switchLanguage;
  $("#theme").onclick = () => {
    const dark = document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    chooseTheme((localStorage.theme = dark === "dark" ? "light" : "dark"));
  };
  document.addEventListener("reuse", async ({ detail: { kind, request, notes = [] } }) => {
    const more = await go(ROOM_OF[kind] ?? "draw").use({ ...request, kind });
    toast([...notes, ...more].join(" "));
  });
  document.addEventListener("keyframe", ({ detail }) => go("animate").take(detail));
  addEventListener("hashchange", enter);
  for (const event of ["dragover", "drop"]) addEventListener(event, (dropped) => dropped.preventDefault());
}

async function loadModels() {
  try {
    const { models } = await get("api/models");
    const choices = models.filter(({ makes, bundled, default: own }) => makes !== "music" && !(bundled && own));
    const own = make("option", { value: "", textContent: t("defaultModel"), "data-t": "defaultModel" });
    $("#model").replaceChildren(own, ...choices.map(({ name }) => make("option", { value: name, textContent: name })));
    $("#model").hidden = !choices.length;
  } catch (error) {
    toast(error.message);
  }
}

chooseTheme(localStorage.theme);
bind();
enter();
loadModels();
