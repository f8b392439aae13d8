// The drawing area: strokes and pictures, and what the model is sent of them.
//
// It paints at a multiple of the model's resolution; `image()` scales down with smoothing, unless the
// area still shows what it was given: an image of the model's own size, or a file. Those are sent as
// they are, and the service fits a file to the model as it fits all of them.

import { pngBlob } from "./api.js";
import { el } from "./dom.js";

const PAINTED = 336; // pixels along the longer side, at least

export class Pad {
  constructor(canvas, changed) {
    this.canvas = canvas;
    this.changed = changed; // called after every change, with true while a stroke goes on
    this.context = canvas.getContext("2d", { willReadFrequently: true });
    this.undone = [];
    this.pen = 2;
    this.colour = "#ffffff";
    this.exact = null; // {base64} or {file, blob}: what the area shows, until it is changed
    this.listen();
  }

  // fit: how the service brings a file to the model's size, "crop" or "pad". A picture of the same size
  // and colours stays.
  resize({ channels, height, width }, fit) {
    const [before, shape] = [this.spec, { channels, height, width }];
    this.spec = shape;
    this.fit = fit;
    if (before && Object.keys(shape).every((name) => shape[name] === before[name])) return;
    this.scale = Math.max(1, Math.round(PAINTED / Math.max(height, width)));
    this.canvas.width = width * this.scale;
    this.canvas.height = height * this.scale;
    this.undone = [];
    this.wipe();
  }

  wipe() {
    this.exact = null;
    this.context.fillStyle = "#000";
    this.context.fillRect(0, 0, this.canvas.width, this.canvas.height);
  }

  // Nothing was drawn or shown: an image that is black is one.
  get blank() {
    return !this.exact && !this.pixels().some((value, index) => index % 4 !== 3 && value > 0);
  }

  pixels() {
    return this.context.getImageData(0, 0, this.canvas.width, this.canvas.height).data;
  }

  listen() {
    let last = null;
    const place = (event) => {
      const box = this.canvas.getBoundingClientRect();
      return [
        ((event.clientX - box.left) / box.width) * this.canvas.width,
        ((event.clientY - box.top) / box.height) * this.canvas.height,
      ];
    };
    const stroke = (event) => {
      const [x, y] = place(event);
      const c = this.context;
      Object.assign(c, { strokeStyle: this.colour, lineWidth: this.pen * this.scale, lineCap: "round", lineJoin: "round" });
      c.beginPath();
      c.moveTo(...(last ?? [x, y]));
      c.lineTo(x, y);
      c.stroke();
      last = [x, y];
      this.exact = null;
    };
    this.canvas.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      this.canvas.setPointerCapture(event.pointerId);
      this.remember();
      stroke(event);
      this.changed(true);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (!last) return;
      (event.getCoalescedEvents?.() ?? []).forEach(stroke);
      stroke(event);
      this.changed(true);
    });
    const end = () => {
      if (!last) return;
      last = null;
      this.changed(false);
    };
    this.canvas.addEventListener("pointerup", end);
    this.canvas.addEventListener("pointercancel", end);
  }

  remember() {
    const { width, height } = this.canvas;
    this.undone.push({ data: this.context.getImageData(0, 0, width, height), exact: this.exact });
    if (this.undone.length > 30) this.undone.shift();
  }

  undo() {
    const before = this.undone.pop();
    if (!before) return;
    this.context.putImageData(before.data, 0, 0);
    this.exact = before.exact;
    this.changed(false);
  }

  clear() {
    this.remember();
    this.wipe();
    this.changed(false);
  }

  // A picture and what of it is sent: {base64} of the model's own size, or {file, blob}.
  show(picture, exact) {
    this.remember();
    this.wipe();
    const { width, height } = this.canvas;
    const sides = [width / picture.naturalWidth, height / picture.naturalHeight];
    const ratio = this.fit === "crop" ? Math.max(...sides) : Math.min(...sides);
    const [w, h] = [picture.naturalWidth * ratio, picture.naturalHeight * ratio];
    this.context.imageSmoothingEnabled = Boolean(exact.file);
    this.context.imageSmoothingQuality = "high";
    this.context.drawImage(picture, (width - w) / 2, (height - h) / 2, w, h);
    if (this.spec.channels === 1) this.map((r, g, b) => [0.299 * r + 0.587 * g + 0.114 * b]);
    this.exact = exact;
    this.changed(false);
  }

  invert() {
    this.remember();
    this.map((r, g, b) => [255 - r, 255 - g, 255 - b]);
    this.exact = null;
    this.changed(false);
  }

  map(change) {
    const { width, height } = this.canvas;
    const image = this.context.getImageData(0, 0, width, height);
    const data = image.data;
    for (let i = 0; i < data.length; i += 4) {
      const [r, g = r, b = r] = change(data[i], data[i + 1], data[i + 2]);
      [data[i], data[i + 1], data[i + 2]] = [r, g, b];
    }
    this.context.putImageData(image, 0, 0);
  }

  // Move the centre of mass to the middle, as the digits of MNIST are.
  centre() {
    const data = this.pixels();
    const { width, height } = this.canvas;
    let [mass, x, y] = [0, 0, 0];
    for (let i = 0; i < data.length; i += 4) {
      const weight = data[i] + data[i + 1] + data[i + 2];
      mass += weight;
      x += weight * ((i / 4) % width);
      y += weight * Math.floor(i / 4 / width);
    }
    if (mass === 0) return;
    this.remember();
    const image = this.context.getImageData(0, 0, width, height);
    this.wipe();
    this.context.putImageData(image, Math.round(width / 2 - x / mass), Math.round(height / 2 - y / mass));
    this.changed(false);
  }

  // What is sent: {blob, base64 or file, options}; in the model's own resolution onto `target`.
  image(target) {
    const { width, height } = this.spec;
    Object.assign(target, { width, height });
    const context = target.getContext("2d");
    context.imageSmoothingEnabled = !this.exact?.base64;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.canvas, 0, 0, width, height);
    if (this.exact?.file) return { ...this.exact, options: { resize: true, convert: true } };
    const base64 = this.exact?.base64 ?? target.toDataURL("image/png").split(",")[1];
    return { base64, blob: pngBlob(base64), options: {} };
  }
}

export function pictureFrom(url) {
  return new Promise((resolve, reject) => {
    const picture = el("img");
    picture.onload = () => resolve(picture);
    picture.onerror = () => reject(Object.assign(new Error("This file is not an image that the browser can read."), { isOfFile: true }));
    picture.src = url;
  });
}
