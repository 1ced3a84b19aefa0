/** The server's own protocol: requests, jobs and their events. */

import { $, dataUrl, make } from "./dom.js";
import { t } from "./i18n.js";

const AGAIN = 1000; // milliseconds until a lost connection is opened anew

/** Who asks: the queue is fair between such names. */
export const client = (localStorage.client ??= [...crypto.getRandomValues(new Uint8Array(8))].map((b) => b.toString(16).padStart(2, "0")).join(""));

/** What the server refuses, in its own words; `field` is the field that is wrong. */
export class Refusal extends Error {
  constructor(message, field = null) {
    super(message);
    this.field = field;
  }
}

async function call(method, path, body) {
  const headers = { "X-Reverie-Client": client };
  if (body) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  } catch {
    throw new Refusal(t("unreachable"));
  }
  if (answer.status === 204) return null;
  const data = await answer.json().catch(() => null);
  if (answer.ok) return data;
  if (answer.status === 429) throw new Refusal(t("busy"));
  throw new Refusal(data?.error?.message ?? `${answer.status} ${answer.statusText}`, data?.error?.param);
}

export const get = (path) => call("GET", path);
export const post = (path, body = {}) => call("POST", path, body);
export const remove = (path) => call("DELETE", path);

/** Read which request made a file: {kind, model, request, notes}. */
export const inspect = async (file) => post("api/inspect", { file: await dataUrl(file) });

/** Return the model that the user chose, or null for the server's default of a kind. */
export const chosenModel = () => $("#model").value || null;

const ENDED = ["done", "failed", "cancelled"];
const listeners = new Map(); // what hears the events of a job, by its id
let socket = null; // one for all jobs: browsers open only a few streams to a server

function watch(id) {
  if (socket?.readyState === WebSocket.OPEN) return socket.send(JSON.stringify({ type: "watch", id }));
  if (socket) return null; // it asks for all once it is open
  socket = openSocket("api/ws");
  socket.onopen = () => [...listeners.keys()].forEach(watch);
  socket.onmessage = ({ data }) => {
    const event = JSON.parse(data);
    listeners.get(event.id)?.(event);
  };
  socket.onclose = () => {
    socket = null;
    if (listeners.size) setTimeout(() => listeners.size && watch(listeners.keys().next().value), AGAIN);
  };
  return null;
}

/** Open a WebSocket to a path of this server. */
export function openSocket(path) {
  const url = new URL(`${path}?client=${client}`, location.href);
  url.protocol = url.protocol.replace("http", "ws");
  return new WebSocket(url);
}

/** Follow a job; `on[type](event)` hears its events. Resolves to the job as it ended. */
function follow(id, on) {
  return new Promise((resolve) => {
    listeners.set(id, (event) => {
      on[event.type]?.(event);
      if (event.type !== "state" || !ENDED.includes(event.job.state)) return;
      listeners.delete(id);
      resolve(event.job);
    });
    watch(id);
  });
}

/**
 * Submit a job and show in `place` where it stands, with a button to cancel it and its notes.
 *
 * `on` hears events by their type. Resolves to the job when it is done, and to null when it was cancelled or failed,
 * which `place` says in words.
 */
export async function run(place, body, on = {}) {
  const bar = make("progress", { max: 1, "aria-label": t("progressBar") });
  const [says, counts] = [make("span", { role: "status" }), make("span")];
  const cancel = make("button", { type: "button", className: "quiet", textContent: t("cancel") });
  const line = make("div", { className: "line" }, bar, says, counts, cancel);
  const box = make("div", { className: "working" }, line);
  place.replaceChildren(...place.querySelectorAll(".working"), box); // of what is over, nothing stays
  const note = (text, kind = "note") => box.append(make("p", { className: kind, textContent: text }));
  try {
    says.textContent = t("sending");
    const job = await post("api/jobs", body);
    cancel.onclick = () => remove(`api/jobs/${job.id}`).catch((error) => note(error.message, "error"));
    const waits = (position) => (says.textContent = position ? t("waiting", position) : t("next"));
    const ended = await follow(job.id, {
      ...on,
      state: ({ job }) => (job.state === "queued" ? waits(job.position) : (says.textContent = t("starting"))),
      position: ({ position }) => waits(position),
      progress: (event) => {
        bar.value = event.done / event.total;
        says.textContent = "";
        counts.textContent = t("progress", event.done, event.total);
        on.progress?.(event);
      },
      note: ({ text }) => note(text),
    });
    if (ended.state === "done") {
      box.append(make("p", { className: "unseen", role: "status", textContent: t("done") }));
      return ended;
    }
    note(ended.state === "cancelled" ? t("cancelled") : ended.error, ended.state === "failed" ? "error" : "note");
  } catch (error) {
    note(error.message, "error");
    if (error.field) place.closest("section")?.querySelector(`[name="${error.field}"]`)?.focus();
  } finally {
    line.remove();
    box.classList.remove("working");
  }
  return null;
}
