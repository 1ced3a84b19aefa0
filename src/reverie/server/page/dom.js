/** The few lines that stand between this page and the browser's elements. */

export const $ = (selector, root = document) => root.querySelector(selector);
export const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

/** Make an element; properties that start with "on" are listeners, "aria-" and "data-" ones attributes. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && !name.includes("-")) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Say something for a moment, also to screen readers. */
export function toast(text) {
  const place = $("#toast");
  place.textContent = text;
  place.hidden = !text;
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => (place.hidden = true), 8000);
}

/** Let the user choose files. */
export function choose(accept, multiple = false) {
  const input = $("#file");
  Object.assign(input, { accept, multiple, value: "" });
  return new Promise((resolve) => {
    input.onchange = () => resolve([...input.files]);
    input.click();
  });
}

/** Call `take` with the files that are dropped on, or pasted into, an element. */
export function onFiles(element, take) {
  const files = (event) => [...(event.dataTransfer ?? event.clipboardData).files];
  element.addEventListener("dragover", (event) => {
    event.preventDefault();
    element.classList.add("over");
  });
  element.addEventListener("dragleave", () => element.classList.remove("over"));
  for (const kind of ["drop", "paste"]) {
    element.addEventListener(kind, (event) => {
      element.classList.remove("over");
      if (!files(event).length) return;
      event.preventDefault();
      event.stopPropagation();
      take(files(event));
    });
  }
}

export function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** Return the filled-in fields of a form as JSON values: empty ones are left out. */
export function fields(form) {
  const values = {};
  for (const input of form.elements) {
    if (!input.name) continue;
    if (input.type === "checkbox") values[input.name] = input.checked;
    else if (input.value.trim() !== "") {
      const number = input.type === "number" || input.type === "range";
      values[input.name] = number ? Number(input.value) : input.value.trim();
    }
  }
  return values;
}

/** Fill a form with values by its fields' names. */
export function fill(form, values) {
  for (const input of form.elements) {
    if (!input.name || !(input.name in values)) continue;
    const value = values[input.name];
    if (input.type === "checkbox") input.checked = Boolean(value);
    else input.value = value ?? "";
  }
}
