/** The sheet to sketch on: two layers, sketch and mask, with tools and undo. What is transparent is unpainted. */

const HISTORY = 30;
const FINE = 2; // pixels of the sheet for one of the picture
const NEUTRAL = "#a0a0a0"; // noise covers it soonest; white would be taken for snow
const HALO = [16, 8, 4, 2]; // how far a stroke's colour flows into what is unpainted, in pixels
const MASK = "#e0457b";

/** Return a canvas whose content is kept where it is read soonest. */
function blank(width, height) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  canvas.getContext("2d", { willReadFrequently: true });
  return canvas;
}

export class Sheet extends EventTarget {
  tool = "brush";
  colour = "#8a5a2b";
  thickness = 18;
  masking = false;
  #past = [];
  #future = [];
  #before = null; // the layer's content before the stroke at work
  #cursor = null; // where the keyboard's pen is
  #painted = new WeakMap(); // whether there is something on a layer, where that is known: it takes long to see

  constructor(element) {
    super();
    this.element = element;
    this.resize(256, 256);
    element.addEventListener("pointerdown", (event) => this.#press(event));
    element.addEventListener("pointermove", (event) => this.#move(event));
    for (const kind of ["pointerup", "pointercancel"]) element.addEventListener(kind, () => this.#release());
    element.addEventListener("keydown", (event) => this.#key(event));
    element.addEventListener("keyup", (event) => event.key === " " && this.#release());
    element.addEventListener("blur", () => this.#forgetCursor());
  }

  /** Take a picture's size in pixels; what is sketched is stretched to it. */
  resize(width, height) {
    if (this.width === width && this.height === height) return;
    const layers = { sketch: this.sketch, mask: this.mask };
    for (const [name, old] of Object.entries(layers)) {
      this[name] = blank(width * FINE, height * FINE);
      if (old) this[name].getContext("2d").drawImage(old, 0, 0, width * FINE, height * FINE);
    }
    Object.assign(this, { width, height });
    Object.assign(this.element, { width: width * FINE, height: height * FINE });
    this.small = blank(width, height); // what is sent is made in these, as new ones take long
    this.opaque = blank(width, height);
    this.halos = HALO.map((reach) => blank(Math.ceil(width / reach), Math.ceil(height / reach)));
    this.#past = [];
    this.#future = [];
    this.#show();
  }

  get #layer() {
    return this.masking ? this.mask : this.sketch;
  }

  get empty() {
    return !this.#isPainted(this.sketch);
  }

  get masked() {
    return this.#isPainted(this.mask);
  }

  #isPainted(layer) {
    if (!this.#painted.has(layer)) this.#painted.set(layer, painted(layer));
    return this.#painted.get(layer);
  }

  /** Note that a layer changes: where paint is only added, what was painted stays so. */
  #change(layer, adds = false) {
    if (!adds || !this.#painted.get(layer)) this.#painted.delete(layer);
  }

  // What becomes of the sheet

  /** Return the sketch as a PNG's data URL, transparent where nothing is painted. */
  transparent() {
    return this.#scaled(this.sketch).toDataURL();
  }

  /** Return the sketch as an opaque PNG's data URL: strokes glow into what is unpainted, and beyond it is neutral. */
  filled() {
    const small = this.#scaled(this.sketch);
    const context = this.opaque.getContext("2d");
    context.fillStyle = NEUTRAL;
    context.fillRect(0, 0, this.width, this.height);
    for (const tiny of this.halos) {
      stretch(small, tiny);
      context.drawImage(tiny, 0, 0, this.width, this.height);
    }
    context.drawImage(small, 0, 0);
    return this.opaque.toDataURL();
  }

  /** Return what is to be painted anew, white on black. */
  maskUrl() {
    const white = blank(this.width, this.height);
    const context = white.getContext("2d");
    context.drawImage(this.mask, 0, 0, this.width, this.height);
    context.globalCompositeOperation = "source-in";
    context.fillStyle = "white";
    context.fillRect(0, 0, this.width, this.height);
    context.globalCompositeOperation = "destination-over";
    context.fillStyle = "black";
    context.fillRect(0, 0, this.width, this.height);
    return white.toDataURL();
  }

  #scaled(layer) {
    this.small.getContext("2d").imageSmoothingQuality = "high";
    return stretch(layer, this.small);
  }

  // What is done to it

  /** Lay a picture on the sketch, as large as it fits. */
  place(picture) {
    this.#remember(this.sketch);
    const { width, height } = this.sketch;
    const scale = Math.min(width / picture.width, height / picture.height);
    const [w, h] = [picture.width * scale, picture.height * scale];
    const context = this.sketch.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(picture, (width - w) / 2, (height - h) / 2, w, h);
    this.#change(this.sketch, true);
    this.#changed(true);
  }

  /** Take a picture in place of what is there, and a mask that is white where it is painted anew. */
  load(picture, mask) {
    this.clear();
    if (mask) {
      const context = this.mask.getContext("2d");
      context.drawImage(mask, 0, 0, this.mask.width, this.mask.height);
      const content = contentOf(this.mask);
      const tint = rgb(MASK);
      for (let at = 0; at < content.data.length; at += 4) content.data.set([...tint, content.data[at]], at);
      context.putImageData(content, 0, 0);
      this.#change(this.mask);
    }
    this.place(picture);
  }

  clear() {
    for (const layer of [this.sketch, this.mask]) {
      if (this.#isPainted(layer)) this.#remember(layer);
      layer.getContext("2d").clearRect(0, 0, layer.width, layer.height);
      this.#change(layer);
    }
    this.#changed(true);
  }

  undo() {
    this.#swap(this.#past, this.#future);
  }

  redo() {
    this.#swap(this.#future, this.#past);
  }

  get undoable() {
    return this.#past.length > 0;
  }

  get redoable() {
    return this.#future.length > 0;
  }

  #swap(from, to) {
    const last = from.pop();
    if (!last) return;
    to.push({ layer: last.layer, content: contentOf(last.layer) });
    last.layer.getContext("2d").putImageData(last.content, 0, 0);
    this.#change(last.layer);
    this.#changed(true);
  }

  #remember(layer) {
    this.#past.push({ layer, content: contentOf(layer) });
    if (this.#past.length > HISTORY) this.#past.shift();
    this.#future = [];
  }

  // Pointer and keyboard

  #at({ clientX, clientY, pressure = 0.5, pointerType }) {
    const box = this.element.getBoundingClientRect();
    const scale = this.element.width / box.width;
    return { x: (clientX - box.left) * scale, y: (clientY - box.top) * scale, force: pointerType === "pen" ? 2 * pressure : 1 };
  }

  #press(event) {
    if (event.button) return;
    event.preventDefault();
    this.element.focus({ preventScroll: true });
    this.element.setPointerCapture(event.pointerId);
    this.#begin(this.#at(event));
  }

  #move(event) {
    if (!this.#before || !event.isPrimary) return;
    const points = event.getCoalescedEvents?.() ?? [];
    for (const point of points.length ? points : [event]) this.#draw(this.#at(point));
    this.#changed(false);
  }

  #release() {
    if (!this.#before) return;
    this.#before = null;
    this.#changed(true);
  }

  #begin(point) {
    this.#remember(this.#layer);
    this.#before = this.#past.at(-1).content;
    this.start = this.last = this.middle = point;
    this.#change(this.#layer, this.tool !== "eraser");
    if (this.tool === "fill") flood(this.#layer, point, this.masking ? MASK : this.colour);
    else if (this.tool === "brush" || this.tool === "eraser") this.#draw(point);
    this.#changed(false);
  }

  #key(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key === " " && !event.repeat) {
      event.preventDefault();
      this.#cursor ??= { x: this.element.width / 2, y: this.element.height / 2, force: 1 };
      this.#begin(this.#cursor);
    } else if (event.key in steps) {
      event.preventDefault();
      const [dx, dy] = steps[event.key].map((way) => way * (event.shiftKey ? 40 : 10));
      const { x, y } = this.#cursor ?? { x: this.element.width / 2, y: this.element.height / 2 };
      const within = (value, most) => Math.max(0, Math.min(most, value));
      this.#cursor = { x: within(x + dx, this.element.width), y: within(y + dy, this.element.height), force: 1 };
      if (this.#before) this.#draw(this.#cursor);
      this.#changed(false);
    }
  }

  #forgetCursor() {
    this.#release();
    this.#cursor = null;
    this.#show();
  }

  #draw(point) {
    this.#change(this.#layer, this.tool !== "eraser");
    const context = this.#layer.getContext("2d");
    const paint = this.masking ? MASK : this.colour;
    context.globalCompositeOperation = this.tool === "eraser" ? "destination-out" : "source-over";
    Object.assign(context, { lineCap: "round", lineJoin: "round", strokeStyle: paint, fillStyle: paint });
    context.lineWidth = Math.max(1, this.thickness * FINE * point.force);
    context.beginPath();
    if (this.tool === "brush" || this.tool === "eraser") {
      const middle = { x: (this.last.x + point.x) / 2, y: (this.last.y + point.y) / 2 };
      context.moveTo(this.middle.x, this.middle.y);
      context.quadraticCurveTo(this.last.x, this.last.y, middle.x, middle.y);
      Object.assign(this, { last: point, middle });
      context.stroke();
    } else if (this.tool !== "fill") {
      context.putImageData(this.#before, 0, 0);
      this.#shape(context, point);
    }
    context.globalCompositeOperation = "source-over";
  }

  #shape(context, { x, y }) {
    const { x: x0, y: y0 } = this.start;
    if (this.tool === "line") {
      context.moveTo(x0, y0);
      context.lineTo(x, y);
      return context.stroke();
    }
    if (this.tool === "rectangle") context.rect(Math.min(x0, x), Math.min(y0, y), Math.abs(x - x0), Math.abs(y - y0));
    else context.ellipse((x0 + x) / 2, (y0 + y) / 2, Math.abs(x - x0) / 2, Math.abs(y - y0) / 2, 0, 0, 2 * Math.PI);
    return context.fill();
  }

  // What is seen

  #changed(done) {
    this.#show();
    this.dispatchEvent(new CustomEvent("change", { detail: { done } }));
  }

  #show() {
    const context = this.element.getContext("2d");
    context.clearRect(0, 0, this.element.width, this.element.height);
    context.drawImage(this.sketch, 0, 0);
    context.globalAlpha = 0.55;
    context.drawImage(this.mask, 0, 0);
    context.globalAlpha = 1;
    if (!this.#cursor) return;
    Object.assign(context, { lineWidth: 2, strokeStyle: this.tool === "eraser" ? "#888" : this.colour });
    context.beginPath();
    context.arc(this.#cursor.x, this.#cursor.y, Math.max(4, (this.thickness * FINE) / 2), 0, 2 * Math.PI);
    context.stroke();
  }
}

/** Lay a canvas over the whole of another, in place of what is there, and return that. */
function stretch(from, to) {
  const context = to.getContext("2d");
  context.clearRect(0, 0, to.width, to.height);
  context.drawImage(from, 0, 0, to.width, to.height);
  return to;
}

function contentOf(layer) {
  return layer.getContext("2d").getImageData(0, 0, layer.width, layer.height);
}

function painted(layer) {
  return new Uint32Array(contentOf(layer).data.buffer).some((pixel) => pixel !== 0);
}

/** Return the parts of a colour written as #rrggbb. */
const rgb = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));

/** Fill the region of one colour around a point. */
function flood(layer, { x, y }, colour) {
  const context = layer.getContext("2d");
  const content = contentOf(layer);
  const pixels = new Uint32Array(content.data.buffer);
  const { width, height } = layer;
  const [red, green, blue] = rgb(colour);
  const paint = ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  const start = Math.min(height - 1, Math.floor(y)) * width + Math.min(width - 1, Math.floor(x));
  const old = pixels[start];
  if (old === paint) return;
  const stack = [start];
  while (stack.length) {
    const at = stack.pop();
    if (pixels[at] !== old) continue;
    pixels[at] = paint;
    const column = at % width;
    if (column > 0) stack.push(at - 1);
    if (column < width - 1) stack.push(at + 1);
    if (at >= width) stack.push(at - width);
    if (at < width * (height - 1)) stack.push(at + width);
  }
  context.putImageData(content, 0, 0);
}
