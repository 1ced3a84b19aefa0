/** What goes with a prompt beyond the form: styles, {red|blue}, LoRAs, and what a picture's request holds besides. */

import { $, make } from "./dom.js";
import { t } from "./i18n.js";

// What the form or the sheet hold, and what says nothing: a request as files record it names everything.
const HELD = ["kind", "prompt", "negative", "sampler", "schedule", "steps", "guidance", "seed", "width", "height", "count", "hires"];
const ON_SHEET = ["init", "mask", "strength"];
const NEUTRAL = { discard_penultimate: false, guidance_rescale: 0, guidance_interval: "0,1", cache_steps: 1, merge_tokens: 0, clip_skip: 1, rng: "cpu", tile: "none" };
const OF_ONE_KIND = ["mask_blur", "only_masked", "padding", "fill", "left", "right", "top", "bottom"];

let carried = {}; // fields of a request that was taken over, which the form does not show

export const alsoAsked = () => carried;

/** Carry what else a request asks for, and show it; returns the names of what cannot be carried. */
export function carry(request) {
  const said = Object.entries(request).filter(([name, value]) => !HELD.includes(name) && !ON_SHEET.includes(name) && says(name, value));
  carried = Object.fromEntries(said.filter(([name]) => !OF_ONE_KIND.includes(name)));
  const names = Object.keys(carried).join(", ");
  const away = make("button", { type: "button", className: "chip", textContent: `${t("alsoAsked", names)} ×`, onclick: () => carry({}) });
  $("#carried").replaceChildren(...(names ? [away] : []));
  return said.map(([name]) => name).filter((name) => OF_ONE_KIND.includes(name));
}

const says = (name, value) => value !== null && `${value}` !== "" && `${value}` !== `${NEUTRAL[name]}` && JSON.stringify(value) !== "{}";

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
