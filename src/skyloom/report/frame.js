// The full-frame view: one plane at a time, zoom and pan, circles at the candidates, a read-out under the cursor.

class FrameView {
  constructor(canvas, data, hooks) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.data = data;
    this.hooks = hooks;           // { colourOf(i), isShown(i), onPick(i), onRead(text), onPlane(key) }
    this.pictures = new Map();
    this.painted = new Map();
    this.plane = "difference";
    this.diverging = false;
    this.circles = true;
    this.selected = -1;
    this.blinking = 0;
    [this.ny, this.nx] = data.shape;
    this.center = [(this.nx - 1) / 2, (this.ny - 1) / 2];
    this.zoom = 0;                // CSS pixels per image pixel; 0 until the first layout
    this.fitted = true;
    new ResizeObserver(() => this.layout()).observe(canvas);
    this.listen();
  }

  get frame() { return this.data.frames.find((frame) => frame.key === this.plane); }

  layout() {
    const ratio = window.devicePixelRatio || 1;
    const { width, height } = this.canvas.getBoundingClientRect();
    if (!width || !height) return;
    [this.width, this.height] = [width, height];
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    if (this.fitted) this.fit(); else this.draw();
  }

  fit() {
    this.fitted = true;
    this.center = [(this.nx - 1) / 2, (this.ny - 1) / 2];
    this.zoom = Math.min(this.width / this.nx, this.height / this.ny);
    this.draw();
  }

  toScreen(x, y) {
    return [this.width / 2 + (x - this.center[0]) * this.zoom, this.height / 2 - (y - this.center[1]) * this.zoom];
  }

  toImage(sx, sy) {
    return [this.center[0] + (sx - this.width / 2) / this.zoom, this.center[1] - (sy - this.height / 2) / this.zoom];
  }

  zoomBy(factor, sx = this.width / 2, sy = this.height / 2) {
    const [x, y] = this.toImage(sx, sy);
    const least = 0.5 * Math.min(this.width / this.nx, this.height / this.ny);
    this.zoom = Math.min(Math.max(this.zoom * factor, least), 40);
    this.center = [x - (sx - this.width / 2) / this.zoom, y + (sy - this.height / 2) / this.zoom];
    this.fitted = false;
    this.draw();
  }

  panBy(sx, sy) {
    this.center = [
      Math.min(Math.max(this.center[0] - sx / this.zoom, 0), this.nx - 1),
      Math.min(Math.max(this.center[1] + sy / this.zoom, 0), this.ny - 1)];
    this.fitted = false;
    this.draw();
  }

  goTo(index) {
    this.selected = index;
    const x = this.data.x[index], y = this.data.y[index];
    if (x !== null && y !== null) {
      this.center = [x, y];
      this.zoom = Math.max(this.zoom, Math.min(this.width, this.height) / 120);
      this.fitted = false;
    }
    this.draw();
  }

  show(plane) {
    if (!this.data.frames.some((frame) => frame.key === plane)) return;
    this.plane = plane;
    this.hooks.onPlane(plane);
    this.draw();
  }

  blink(on) {
    clearInterval(this.blinking);
    this.blinking = 0;
    if (!on) return;
    this.show(this.plane === "science" ? "template" : "science");
    this.blinking = setInterval(() => this.show(this.plane === "science" ? "template" : "science"), 700);
  }

  setDiverging(on) {
    this.diverging = on;
    for (const key of ["difference", "score"]) this.painted.delete(key);
    this.draw();
  }

  // The painted plane, or null while it is being decoded (and drawn then).
  picture(frame) {
    const picture = this.pictures.get(frame.key);
    if (picture === undefined) {
      this.pictures.set(frame.key, null);
      decodeLevels(frame.uri).then((decoded) => {
        this.pictures.set(frame.key, decoded);
        this.draw();
      });
    }
    if (!picture) return null;
    if (!this.painted.has(frame.key)) {
      const kind = frame.stretch.symmetric && this.diverging ? "diverging" : "grey";
      this.painted.set(frame.key, paint(picture, [colourTable(kind, frame.stretch.levels)]));
    }
    return this.painted.get(frame.key);
  }

  draw() {
    if (!this.zoom) return;
    const context = this.context, frame = this.frame;
    const ratio = this.canvas.width / this.width;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.fillStyle = "#20242b";
    context.fillRect(0, 0, this.width, this.height);
    const picture = this.picture(frame);
    if (picture) {
      const [left, top] = this.toScreen(-0.5, picture.height * frame.bin - 0.5);
      const scale = this.zoom * frame.bin;
      context.imageSmoothingEnabled = scale < 1;
      context.drawImage(picture, left, top, picture.width * scale, picture.height * scale);
    }
    if (this.circles) this.drawCircles();
    this.drawScale();
  }

  drawCircles() {
    const context = this.context;
    const radius = Math.max(7, Math.min(2 * this.zoom * (this.data.fwhm || 3), 60));
    const order = [...this.data.x.keys()].filter((i) => this.hooks.isShown(i) && i !== this.selected);
    if (this.selected >= 0) order.push(this.selected);
    for (const i of order) {
      const x = this.data.x[i], y = this.data.y[i];
      if (x === null || y === null) continue;
      const [sx, sy] = this.toScreen(x, y);
      if (sx < -radius || sy < -radius || sx > this.width + radius || sy > this.height + radius) continue;
      const { colour, dashed } = this.hooks.colourOf(i);
      for (const [stroke, width] of [["rgba(0, 0, 0, 0.65)", 4], [colour, i === this.selected ? 3 : 1.6]]) {
        context.beginPath();
        context.arc(sx, sy, i === this.selected ? radius + 3 : radius, 0, 2 * Math.PI);
        context.setLineDash(dashed ? [4, 3] : []);
        context.strokeStyle = stroke;
        context.lineWidth = width;
        context.stroke();
      }
      if (i === this.selected || this.zoom > 2) this.label(String(this.data.id[i]), sx + radius + 5, sy - radius, colour);
    }
    context.setLineDash([]);
  }

  label(text, sx, sy, colour) {
    const context = this.context;
    context.font = "600 12px system-ui, sans-serif";
    context.lineWidth = 3;
    context.strokeStyle = "rgba(0, 0, 0, 0.75)";
    context.strokeText(text, sx, sy);
    context.fillStyle = colour;
    context.fillText(text, sx, sy);
  }

  // A scale bar of a round length, and the directions of north and east when they are known.
  drawScale() {
    const context = this.context, arcsec = this.data.pixelScale;
    const perArcsec = this.zoom / arcsec;
    const [unit, name] = !arcsec ? [this.zoom, " px"] : 0.25 * this.width / perArcsec < 60 ? [perArcsec, "″"] : [60 * perArcsec, "′"];
    const wanted = (0.25 * this.width) / unit;
    const power = 10 ** Math.floor(Math.log10(wanted));
    const length = [5, 2, 1].map((k) => k * power).find((value) => value <= wanted);
    const text = `${+length.toPrecision(1)}${name}`;
    const y = this.height - 14;
    const lines = [[14, y, 14 + length * unit, y]];
    const compass = Object.entries(this.data.compass || {});
    // the middle of the two arrows stays in the corner, whichever way they point
    const x0 = this.width - 38 - compass.reduce((sum, [, [dx]]) => sum + 15 * dx, 0);
    const y0 = this.height - 38 + compass.reduce((sum, [, [, dy]]) => sum + 15 * dy, 0);
    for (const [, [dx, dy]] of compass) lines.push([x0, y0, x0 + 22 * dx, y0 - 22 * dy]);
    for (const [stroke, width] of [["rgba(0, 0, 0, 0.75)", 5], ["#fff", 2]]) {
      context.beginPath();
      for (const [xa, ya, xb, yb] of lines) {
        context.moveTo(xa, ya);
        context.lineTo(xb, yb);
      }
      context.strokeStyle = stroke;
      context.lineWidth = width;
      context.stroke();
    }
    for (const [name, [dx, dy]] of compass) this.label(name, x0 + 31 * dx - 4, y0 - 31 * dy + 4, "#fff");
    this.label(text, 14, y - 8, "#fff");
  }

  read(sx, sy) {
    const [x, y] = this.toImage(sx, sy);
    const parts = [`x ${formatNumber(x, 1)}`, `y ${formatNumber(y, 1)}`];
    if (x < -0.5 || y < -0.5 || x > this.nx - 0.5 || y > this.ny - 0.5) return "";
    const sky = skyAt(this.data.sky, x, y);
    if (sky) parts.push(`${sexagesimal(sky.ra, true)} ${sexagesimal(sky.dec, false)}`);
    const frame = this.frame, picture = this.pictures.get(frame.key);
    if (picture) {
      const column = Math.floor((x + 0.5) / frame.bin), row = picture.height - 1 - Math.floor((y + 0.5) / frame.bin);
      const level = picture.levels[row * picture.width + column];
      const value = valueOf(level, frame.stretch);
      const bound = level === 1 ? "≤ " : level === frame.stretch.levels ? "≥ " : "≈ ";
      parts.push(value === null ? "unusable" : `${bound}${formatValue(value)} ${frame.unit}`);
    }
    return parts.join("   ");
  }

  nearest(sx, sy) {
    let best = -1, least = 20;
    for (let i = 0; i < this.data.x.length; i++) {
      if (!this.hooks.isShown(i) || this.data.x[i] === null || this.data.y[i] === null) continue;
      const [cx, cy] = this.toScreen(this.data.x[i], this.data.y[i]);
      const distance = Math.hypot(cx - sx, cy - sy);
      if (distance < least) [best, least] = [i, distance];
    }
    return best;
  }

  listen() {
    const canvas = this.canvas, fingers = new Map();
    let moved = 0;
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoomBy(1.0015 ** -event.deltaY, event.offsetX, event.offsetY);
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, [event.offsetX, event.offsetY]);
      moved = 0;
    });
    canvas.addEventListener("pointermove", (event) => {
      const here = [event.offsetX, event.offsetY], before = fingers.get(event.pointerId);
      this.hooks.onRead(this.read(...here));
      if (!before) return;
      if (fingers.size === 2) {
        const other = [...fingers].find(([id]) => id !== event.pointerId)[1];
        const spread = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]);
        this.zoomBy(spread(here) / Math.max(spread(before), 1), ...other);
      } else {
        this.panBy(here[0] - before[0], here[1] - before[1]);
      }
      moved += Math.hypot(here[0] - before[0], here[1] - before[1]);
      fingers.set(event.pointerId, here);
    });
    const release = (event) => {
      const pressed = fingers.delete(event.pointerId);
      if (event.type !== "pointerup" || !pressed || moved > 4) return;
      const index = this.nearest(event.offsetX, event.offsetY);
      if (index >= 0) this.hooks.onPick(index);
    };
    canvas.addEventListener("pointerup", release);
    canvas.addEventListener("pointercancel", release);
    canvas.addEventListener("pointerleave", () => this.hooks.onRead(""));
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] }[event.key];
      if (!step) return;
      event.preventDefault();
      event.stopPropagation();
      this.panBy(...step);
      this.hooks.onRead(this.read(this.width / 2, this.height / 2));
    });
  }
}
