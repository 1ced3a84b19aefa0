/** Drawing while one sketches: one drawing in flight, always the newest canvas, and each but once. */

import { openSocket } from "./api.js";
import { t } from "./i18n.js";

export class Live {
  #socket = null;
  #wanted = false; // something newer than what is in flight
  #flying = false;
  #number = 0;
  #last = ""; // what was asked for last

  /** `request()` gives the kind and the request the moment it is sent; `show(event)` and `complain(text)` hear the answers. */
  constructor(request, show, complain) {
    Object.assign(this, { request, show, complain });
  }

  open() {
    const socket = (this.#socket = openSocket("api/live"));
    this.#flying = true; // until it is open
    this.#last = "";
    socket.onopen = () => [(this.#flying = false), this.#next()];
    socket.onmessage = ({ data }) => this.#hear(JSON.parse(data));
    socket.onclose = () => {
      if (this.#socket === socket) setTimeout(() => this.#socket === socket && this.open(), 1000);
    };
    this.#wanted = true;
  }

  close() {
    const socket = this.#socket;
    this.#socket = null;
    this.#flying = this.#wanted = false;
    socket?.close();
  }

  get on() {
    return this.#socket !== null;
  }

  /** Ask for the canvas to be drawn, after the drawing in flight; that one is broken off where it is `urgent`. */
  changed(urgent = false) {
    if (!this.on) return;
    this.#wanted = true;
    if (!this.#flying || urgent) this.#next(urgent);
  }

  #hear(event) {
    if (event.type === "progress") return;
    if (event.type === "picture") this.show(event);
    else {
      this.#last = ""; // to be asked for again
      this.complain(event.message ?? t("unreachable"));
    }
    if (event.number !== this.#number) return; // it was to be broken off
    this.#flying = false;
    this.#next();
  }

  #next(urgent = false) {
    if (!this.#wanted || this.#socket?.readyState !== WebSocket.OPEN) return;
    this.#wanted = false;
    const asked = this.request();
    const text = JSON.stringify(asked);
    if (text === this.#last) return;
    this.#last = text;
    this.#number += 1;
    this.#flying = true;
    this.#socket.send(JSON.stringify({ number: this.#number, urgent, ...asked }));
  }
}
