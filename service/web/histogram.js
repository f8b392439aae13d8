// Where an image lies among calibration's: their distances from usual images as a histogram.

const BINS = 48;
const [WIDTH, HEIGHT, BEYOND] = [480, 96, 24]; // BEYOND: room for what is farther than all of them

// p-values that a slider goes over, of which the calibration must reach the smallest.
export function alphas(images, given = []) {
  const usual = [1e-4, 1e-3, 1e-2, 1e-1].flatMap((tens) => [1, 1.5, 2, 3, 5, 7].map((step) => Number((step * tens).toPrecision(2))));
  const least = 1 / (1 + images);
  return [...new Set([...usual, ...given])].filter((alpha) => alpha >= least && alpha <= 0.5).sort((a, b) => a - b);
}

// How many calibration images lie as far out as an image with that p-value.
export const asFar = (p, images) => Math.round(p * (images + 1)) - 1;

function node(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// `distances` ascending; p: of the image, null without one.
export function drawHistogram(svg, distances, alpha, p) {
  const n = distances.length;
  const logs = distances.map((distance) => Math.log(Math.max(distance, 1e-9)));
  const [low, high] = [logs[0], logs[n - 1]];
  const width = WIDTH - BEYOND;
  const x = (log) => (width * (log - low)) / (high - low || 1);
  // The place below which exactly `count` images lie as far out.
  const place = (count) => (count <= 0 ? width : count >= n ? 0 : (x(logs[n - count - 1]) + x(logs[n - count])) / 2);
  const most = Math.floor(alpha * (n + 1) + 1e-9) - 1; // as far out as an anomalous image, at most
  const threshold = most < 0 ? width : x(logs[Math.max(0, n - most - 1)]);
  const counts = new Array(BINS).fill(0);
  for (const log of logs) counts[Math.min(BINS - 1, Math.floor((x(log) / width) * BINS))] += 1;
  const tallest = Math.max(...counts);
  const step = width / BINS;
  const parts = counts.map((count, index) => {
    const height = count && Math.max(1.5, (count / tallest) * (HEIGHT - 12));
    const isOut = (index + 0.5) * step > threshold;
    return node("rect", { class: isOut ? "out" : "in", x: index * step, y: HEIGHT - height, width: step - 1, height });
  });
  parts.push(node("line", { class: "threshold", x1: threshold, x2: threshold, y1: 0, y2: HEIGHT }));
  if (p !== null) {
    const far = asFar(p, n);
    const at = far === 0 ? width + BEYOND / 2 : place(far);
    parts.push(node("path", { class: "mark", d: `M${at - 7} 0h14l-7 11zM${at - 1.2} 8h2.4v${HEIGHT - 8}h-2.4z` }));
  }
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("aria-label", `Histogram: ${placeInWords(p, n)}`);
  svg.replaceChildren(...parts);
}

export function placeInWords(p, n) {
  const images = n.toLocaleString("en");
  if (p === null) return `distances of ${images} calibration images`;
  const far = asFar(p, n);
  if (far === 0) return `farther out than each of ${images} calibration images`;
  return `${far.toLocaleString("en")} of ${images} calibration images lie as far out`;
}
