/** What goes with a prompt beyond the form: styles, LoRAs, and what a picture's request holds besides. */

import { $, make } from "./dom.js";
import { t } from "./i18n.js";

// What says nothing: a request as files record it names every field.
const NEUTRAL = {
  discard_penultimate: false, guidance_rescale: 0, guidance_interval: "0,1", cache_steps: 1, merge_tokens: 0, clip_skip: 1, rng: "cpu", tile: "none",
  interpolation: "slerp", in_between: 0, pace: "uniform", drive: "energy", smooth: 0, inversion: "edict", beats: 4, stereo: false,
  mask_blur: 4, only_masked: false, padding: 32, fill: "original",
};
const ALWAYS = ["kind", "sums", "folders", "template", "negative_template"];

const says = (name, value) => value !== null && !["", `${NEUTRAL[name]}`].includes(`${value}`) && !ALWAYS.includes(name);

/** The fields of a request that was taken over, which the form does not show; a chip names them, and lets go of them. */
export class Carried {
  fields = {};

  /** `held` are the fields that the room shows elsewhere. */
  constructor(place, held) {
    Object.assign(this, { place, held });
  }

  take(request) {
    this.fields = Object.fromEntries(Object.entries(request).filter(([name, value]) => !this.held.includes(name) && says(name, value)));
    const names = Object.keys(this.fields).join(", ");
    const chip = make("button", { type: "button", className: "chip", textContent: `${t("alsoAsked", names)} ×`, onclick: () => this.take({}) });
    this.place.replaceChildren(...(names ? [chip] : []));
  }
}

// Styles are the server's, by name, and words that are kept in the browser.
let named = [];
const kept = () => JSON.parse(localStorage.styles ?? "[]");

/** The chosen style, as jobs take it: a name, or words. */
export function chosenStyle() {
  const { value } = $("#style");
  if (!value) return [];
  return [named.includes(value) ? value : { prompt: value }];
}

export function offerStyles(chosen = $("#style").value, names = named) {
  named = names;
  $("#style").replaceChildren(...["", ...named, ...kept()].map((text) => make("option", { value: text, textContent: text || t("none") })));
  $("#style").value = chosen;
  $("#keep-style").textContent = t(kept().includes(chosen) ? "forgetStyle" : "keepStyle");
}

/** Keep words as a style; or forget the chosen one, where it is one of those. */
export function keepStyle(words) {
  const chosen = $("#style").value;
  const others = kept().filter((one) => one !== chosen);
  if (others.length === kept().length && words) others.push(words);
  localStorage.styles = JSON.stringify([...new Set(others)]);
  offerStyles("");
}

/** Offer LoRAs, whose tags go to the end of the prompt. */
export function offerLoras(files, prompt) {
  const choice = $("#lora");
  const names = files.map((file) => file.replace(/\.[^.]+$/, ""));
  choice.replaceChildren(...["", ...names].map((name) => make("option", { value: name, textContent: name || "…" })));
  choice.parentElement.hidden = !names.length;
  choice.onchange = () => {
    prompt.value = `${prompt.value} <lora:${choice.value}:1>`.trim();
    choice.value = "";
  };
}
