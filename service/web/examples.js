// Images to click: test images of the sets that the models that ship were trained on, and altered ones.

import { $, el, gallery } from "./dom.js";
import { pictureFrom } from "./pad.js";
import { state } from "./state.js";

// By the data set of the manifest's training. `cannot`: what a person should not expect.
const SETS = {
  mnist: {
    title: "MNIST", image: "1×28×28",
    cannot: "It knows single digits, white on black. It turns each grey pixel black or white at random, so shades of grey tell it little. Some digits that stand upside down look usual to it.",
  },
  "fashion-mnist": {
    title: "Fashion-MNIST", image: "1×28×28",
    cannot: "It knows ten kinds of clothes, each upright and alone on black. Prints and fine cloth come out blurred. Clothes that stand upside down often look usual to it.",
  },
  cifar10: {
    title: "CIFAR-10", image: "3×32×32",
    cannot: "It draws light and colours of scenes, hardly objects. Inverted and upside-down photos look usual to it. A small defect shows in the map rather than in the verdict.",
  },
};
const COUNT = 6; // images in each strip

const shapeOf = ({ channels, height, width }) => `${channels}×${height}×${width}`;

export function cannotDo({ training, image }) {
  return SETS[training?.data]?.cannot
    ?? `It knows what it was trained on, in ${image.width} × ${image.height} pixels (width × height), and nothing smaller than one of them. A p-value says how usual an image is among images of that kind, not what is wrong with it.`;
}

// Show what suits the model; `drawn` (base64 URLs) stands in where no set is of its kind.
export async function showExamples(manifest, drawn, chosen) {
  const shape = shapeOf(manifest.image);
  const own = manifest.training?.data;
  const names = Object.keys(SETS).filter((name) => SETS[name].image === shape).sort((a, b) => (b === own) - (a === own));
  const groups = [];
  for (const name of names) groups.push({ title: SETS[name].title, items: await strip(name, manifest.image) });
  const base = names.includes(own) ? groups[0].items[0].url : drawn[0];
  if (!names.includes(own)) groups.unshift({ title: "drawn by the model", items: drawn.slice(0, COUNT).map((url, index) => ({ url, text: `Drawn image ${index + 1}` })) });
  if (base) groups.push({ title: "altered", items: alterations(await pictureFrom(base), manifest.image) });
  if (state.model.manifest !== manifest) return; // another model was chosen meanwhile
  $("examples").replaceChildren(...groups.map(({ title, items }) => {
    const box = el("div", { className: "samples" });
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", `Examples: ${title}`);
    gallery(box, items, (index) => chosen(items[index].url.split(",")[1]));
    return el("div", {}, el("span", { className: "caption" }, title), box);
  }));
}

function canvasOf({ height, width }) {
  const canvas = el("canvas", { width, height });
  const context = canvas.getContext("2d");
  return { canvas, context, url: () => canvas.toDataURL("image/png") };
}

async function strip(name, { height, width }) {
  const sheet = await pictureFrom(`web/examples-${name}.png`);
  return Array.from({ length: COUNT }, (_, index) => {
    const { context, url } = canvasOf({ height, width });
    context.drawImage(sheet, -index * width, 0);
    return { url: url(), text: `${SETS[name].title}, test image ${index + 1}` };
  });
}

function alterations(picture, { channels, height, width }) {
  // `paint` draws on a canvas that holds the picture.
  const altered = (text, paint) => {
    const { context, url } = canvasOf({ height, width });
    context.drawImage(picture, 0, 0);
    paint(context);
    return { url: url(), text };
  };
  const noise = () => {
    const level = () => Math.floor(256 * Math.random());
    const grey = level();
    return channels === 1 ? `rgb(${grey},${grey},${grey})` : `rgb(${level()},${level()},${level()})`;
  };
  const side = Math.max(2, Math.round(Math.min(height, width) / 7));
  const half = { height: Math.ceil(height / 2), width: Math.ceil(width / 2) };
  return [
    altered("with a square that does not belong", (c) => { c.fillStyle = "#fff"; c.fillRect(Math.round(width * 0.2), Math.round(height * 0.25), side, side); }),
    altered("blurred", (c) => { c.filter = "blur(1.2px)"; c.drawImage(picture, 0, 0); }),
    altered("inverted", (c) => { c.globalCompositeOperation = "difference"; c.fillStyle = "#fff"; c.fillRect(0, 0, width, height); }),
    altered("its quarters changed about", (c) => {
      for (const [from, to] of [[0, 3], [3, 0], [1, 2], [2, 1]]) {
        const at = (corner) => [(corner % 2) * half.width, Math.floor(corner / 2) * half.height];
        c.drawImage(picture, ...at(from), half.width, half.height, ...at(to), half.width, half.height);
      }
    }),
    altered("noise", (c) => { for (let i = 0; i < height * width; i += 1) { c.fillStyle = noise(); c.fillRect(i % width, Math.floor(i / width), 1, 1); } }),
    altered("one grey", (c) => { c.fillStyle = "#808080"; c.fillRect(0, 0, width, height); }),
  ];
}
