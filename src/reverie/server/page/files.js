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

const format = ({ name }) => name.split(".").pop();

/** Return links that download a job's files, named by their formats, and numbered where one has several. */
export function downloadLinks(files) {
  return files.map((file) => {
    const alike = files.filter((one) => format(one) === format(file));
    const number = alike.length > 1 ? [alike.indexOf(file) + 1] : [];
    return make("a", { className: "button quiet", href: file.url, download: file.name, textContent: [t("download"), format(file), ...number].join(" ") });
  });
}
