// Grey levels of the embedded pictures: to colours for the eye, and back to pixel values for the read-out.

const UNUSABLE_COLOUR = [96, 70, 138];

// Three anchors of the diverging map: fainter, unchanged, brighter.
const DIVERGING = [[33, 102, 172], [247, 247, 247], [178, 24, 43]];

function colourTable(kind, levels) {
  const table = new Uint8ClampedArray(256 * 4);
  for (let level = 0; level < 256; level++) {
    const u = Math.min(Math.max((level - 1) / (levels - 1), 0), 1);
    let rgb = [255 * u, 255 * u, 255 * u];
    if (kind === "diverging") {
      const [from, to] = u < 0.5 ? [DIVERGING[0], DIVERGING[1]] : [DIVERGING[1], DIVERGING[2]];
      const t = u < 0.5 ? 2 * u : 2 * u - 1;
      rgb = from.map((c, k) => c + (to[k] - c) * t);
    } else if (kind === "inverted") {
      rgb = rgb.map((c) => 255 - c);
    }
    if (level === 0) rgb = UNUSABLE_COLOUR;
    table.set([...rgb, 255], 4 * level);
  }
  return table;
}

// The inverse of Stretch.apply in images.py; null where the pixel is unusable.
function valueOf(level, stretch) {
  if (level === 0) return null;
  const u = (level - 1) / (stretch.levels - 1);
  const scale = Math.asinh(1 / stretch.softening);
  if (stretch.symmetric) {
    const middle = (stretch.low + stretch.high) / 2;
    return middle + (stretch.high - middle) * Math.sinh((2 * u - 1) * scale) * stretch.softening;
  }
  return stretch.low + (stretch.high - stretch.low) * Math.sinh(u * scale) * stretch.softening;
}

async function decodeLevels(uri) {
  const image = new Image();
  image.src = uri;
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const rgba = context.getImageData(0, 0, canvas.width, canvas.height).data;
  const levels = new Uint8Array(canvas.width * canvas.height);
  for (let k = 0; k < levels.length; k++) levels[k] = rgba[4 * k];
  return { width: canvas.width, height: canvas.height, levels };
}

// Paint levels with a table for each column of panels of equal width.
function paint(picture, tables) {
  const canvas = document.createElement("canvas");
  canvas.width = picture.width;
  canvas.height = picture.height;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(picture.width, picture.height);
  const words = new Uint32Array(pixels.data.buffer);
  const luts = tables.map((table) => new Uint32Array(table.buffer));
  const panel = picture.width / tables.length;
  for (let row = 0, k = 0; row < picture.height; row++) {
    for (let column = 0; column < picture.width; column++, k++) {
      words[k] = luts[Math.floor(column / panel)][picture.levels[k]];
    }
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

function formatNumber(value, digits) {
  if (value === null || value === undefined) return "–";
  return value.toFixed(digits).replace("-", "−");
}

function formatValue(value) {
  const size = Math.abs(value);
  return (size >= 1e5 || (size < 1e-3 && size > 0) ? value.toExponential(2) : value.toPrecision(4)).replace("-", "−");
}

function sexagesimal(degrees, hours) {
  const sign = hours ? "" : degrees < 0 ? "−" : "+";
  const digits = hours ? 2 : 1;
  const unit = 3600 * 10 ** digits;
  let ticks = Math.round((Math.abs(degrees) / (hours ? 15 : 1)) * unit);
  if (hours) ticks %= 24 * unit;
  const seconds = ((ticks / 10 ** digits) % 60).toFixed(digits).padStart(3 + digits, "0");
  const minutes = String(Math.floor(ticks / (unit / 60)) % 60).padStart(2, "0");
  return `${sign}${String(Math.floor(ticks / unit)).padStart(2, "0")}:${minutes}:${seconds}`;
}

// Position on the sky from a coarse grid of unit vectors, interpolated linearly; null where it is not known.
function skyAt(sky, x, y) {
  if (!sky) return null;
  const gx = (x - sky.x0) / sky.dx, gy = (y - sky.y0) / sky.dy;
  if (gx < 0 || gy < 0 || gx > sky.nx - 1 || gy > sky.ny - 1) return null;
  const i = Math.min(Math.floor(gx), sky.nx - 2), j = Math.min(Math.floor(gy), sky.ny - 2);
  const fx = gx - i, fy = gy - j;
  const at = (a, b, k) => sky.vectors[3 * ((j + b) * sky.nx + i + a) + k];
  const v = [0, 1, 2].map((k) => (1 - fy) * ((1 - fx) * at(0, 0, k) + fx * at(1, 0, k))
    + fy * ((1 - fx) * at(0, 1, k) + fx * at(1, 1, k)));
  const known = [[0, 0], [1, 0], [0, 1], [1, 1]].every(([a, b]) => at(a, b, 0) !== null);
  if (!known) return null;
  const ra = (Math.atan2(v[1], v[0]) * 180) / Math.PI;
  return { ra: (ra + 360) % 360, dec: (Math.atan2(v[2], Math.hypot(v[0], v[1])) * 180) / Math.PI };
}
