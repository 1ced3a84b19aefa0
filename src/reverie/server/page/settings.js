/** What goes with a prompt beyond the form: styles, {red|blue}, LoRAs, and what a picture's request holds besides. */

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

/** Put the chosen style around the prompt, and let {red|blue} be one of the two, as `pick(count)` says. */
export function worded(prompt, pick) {
  const style = $("#style").value;
  const whole = style.includes("{prompt}") ? style.replaceAll("{prompt}", () => prompt) : [prompt, style].filter(Boolean).join(", ");
  return whole.replace(/\{([^{}]*\|[^{}]*)\}/g, (_, inner) => inner.split("|")[pick(inner.split("|").length)]);
}

// Styles are kept in the browser.
const styles = () => JSON.parse(localStorage.styles ?? "[]");

export function offerStyles(chosen = "") {
  $("#style").replaceChildren(...["", ...styles()].map((text) => make("option", { value: text, textContent: text || t("none") })));
  $("#style").value = chosen;
  $("#keep-style").textContent = t(chosen ? "forgetStyle" : "keepStyle");
}

/** Keep words as a style; or forget the chosen one. */
export function keepStyle(words) {
  const chosen = $("#style").value;
  if (!chosen && !words) return;
  localStorage.styles = JSON.stringify(chosen ? styles().filter((one) => one !== chosen) : [...new Set([...styles(), words])]);
  offerStyles();
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
