/** Files: pictures that the user brings, shrunk to what a model looks at, and links to what was made. */

import { make, toast } from "./dom.js";
import { t } from "./i18n.js";

/** Return a picture's data URL, at most `most` pixels wide and high, or null after saying that it is none. */
export async function shrink(blob, most = 512) {
  let picture;
  try {
    picture = await createImageBitmap(blob);
  } catch {
    toast(t("notPicture", blob.name ?? ""));
    return null;
  }
  const scale = Math.min(1, most / Math.max(picture.width, picture.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(picture.width * scale));
  canvas.height = Math.max(1, Math.round(picture.height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL();
}

/** Return a link that downloads a job's file, named by its format. */
export function downloadLink({ url, name }) {
  return make("a", { className: "button quiet", href: url, download: name, textContent: `${t("download")} ${name.split(".").pop()}` });
}
