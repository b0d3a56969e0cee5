// The candidate table: only the rows on screen exist, so that thousands of candidates stay quick.

const CUTOUT_ZOOM = 4;            // canvas pixels per cutout pixel
const CUTOUT_GAP = 6;

// Columns that share one cell, the second below the first, each with its own sort button.
const STACKS = [["flux", "flux_err"], ["x", "y"], ["ra", "dec"]];

class CandidateTable {
  constructor(data, marks, hooks) {
    this.data = data;
    this.marks = marks;
    this.hooks = hooks;           // { onSelect(i), onChange() }
    this.scroller = document.getElementById("scroller");
    this.table = document.getElementById("candidates-table");
    this.body = this.table.tBodies[0];
    this.cells = [];              // the columns of each cell of a row
    for (const column of data.columns.filter((one) => one.main)) {
      const stack = STACKS.find((pair) => pair[1] === column.key);
      const upper = stack && this.cells.find((cell) => cell[0].key === stack[0]);
      if (upper) upper.push(column); else this.cells.push([column]);
    }
    this.marked = true;           // ticks around the candidates in the cutouts
    this.rows = new Map();
    this.sheets = new Map();
    const ranked = data.columns.some((column) => column.key === "rank");
    this.sort = ranked ? { key: "rank", down: false } : { key: "snr", down: true };
    this.filter = { text: "", snr: 0, sign: "", mark: "", hideFlagged: false };
    this.selected = -1;
    this.searchable = data.id.map((_, i) =>
      data.columns.map((column) => column.values[i]).concat(data.ra ? this.sexagesimalOf(i) : []).join(" ").toLowerCase());
    this.makeHead();
    this.scroller.addEventListener("scroll", () => requestAnimationFrame(() => this.render()), { passive: true });
    new ResizeObserver(() => this.render()).observe(this.scroller);
    this.update();
  }

  sexagesimalOf(i) {
    if (this.data.ra[i] === null || this.data.dec[i] === null) return [];
    return [sexagesimal(this.data.ra[i], true), sexagesimal(this.data.dec[i], false)];
  }

  makeHead() {
    const row = this.table.tHead.rows[0];
    const head = (numeric) => {
      const cell = row.appendChild(document.createElement("th"));
      cell.scope = "col";
      cell.className = numeric ? "number" : "";
      return cell;
    };
    const sorter = (cell, key, label, hint) => {
      const button = cell.appendChild(document.createElement("button"));
      button.type = "button";
      button.textContent = label;
      button.dataset.key = key;
      if (hint) button.title = hint;
      button.addEventListener("click", () => this.sortBy(key));
    };
    for (const columns of this.cells) {
      const cell = head(columns[0].kind === "number");
      for (const { key, label, description, unit } of columns) {
        sorter(cell, key, label, [description, unit && `[${unit}]`].filter(Boolean).join(" "));
      }
      if (columns[0].key === "id") {
        const pictures = head(false);
        pictures.className = "cutouts";
        for (const panel of this.data.sprites.panels) {
          pictures.appendChild(document.createElement("span")).textContent = panel.replace(/^Matched t/, "T");
        }
      }
    }
    sorter(head(false), "mark", "Mark", "real or bogus");
    // every column can sort the table, shown or not
    for (const { key, label } of [...this.data.columns, { key: "mark", label: "Mark" }]) {
      const option = document.getElementById("sort").appendChild(document.createElement("option"));
      option.value = key;
      option.textContent = label;
    }
  }

  valuesOf(key) {
    if (key === "mark") return this.data.id.map((id) => this.marks.get(id));
    const column = this.data.columns.find((one) => one.key === key);
    return key === "snr" ? column.values.map((v) => (v === null ? null : Math.abs(v))) : column.values;
  }

  // Numbers start with the largest, texts and ids with the first; a second click turns the order round.
  sortBy(key, down) {
    const column = this.data.columns.find((one) => one.key === key);
    const first = key === "mark" || (column && column.kind === "number" && !["id", "rank", "x", "y", "ra", "dec"].includes(key));
    this.sort = { key, down: down ?? (this.sort.key === key ? !this.sort.down : first) };
    this.update();
    this.scroller.scrollTop = 0;
    this.render();
  }

  isShown(i) {
    const { text, snr, sign, mark, hideFlagged } = this.filter;
    const value = this.data.snr ? this.data.snr[i] : null;
    if (hideFlagged && this.data.flagged[i]) return false;
    if (snr > 0 && (value === null || Math.abs(value) < snr)) return false;
    if (sign && Math.sign(this.data.signOf[i]) !== Number(sign)) return false;
    if (mark && (this.marks.get(this.data.id[i]) || "none") !== mark) return false;
    return text.split(/\s+/).every((word) => this.searchable[i].includes(word));
  }

  // Filter, sort and draw anew.
  update() {
    this.filter.text = this.filter.text.trim().toLowerCase();
    this.shown = new Uint8Array(this.data.id.length).map((_, i) => (this.isShown(i) ? 1 : 0));
    this.order = [...this.shown.keys()].filter((i) => this.shown[i]);
    const known = this.sort.key === "mark" || this.data.columns.some((column) => column.key === this.sort.key);
    if (known) {
      const values = this.valuesOf(this.sort.key), turn = this.sort.down ? -1 : 1;
      const missing = (v) => v === null || v === "";
      this.order.sort((a, b) => {
        const [va, vb] = [values[a], values[b]];
        if (missing(va) || missing(vb)) return missing(va) - missing(vb) || a - b;
        const compared = typeof va === "string" ? va.localeCompare(vb, "en", { numeric: true }) : va - vb;
        return turn * compared || a - b;
      });
    }
    for (const cell of this.table.tHead.rows[0].cells) {
      cell.removeAttribute("aria-sort");
      for (const button of cell.querySelectorAll("button")) {
        const active = button.dataset.key === this.sort.key;
        button.classList.toggle("sorted", active);
        if (active) cell.setAttribute("aria-sort", this.sort.down ? "descending" : "ascending");
      }
    }
    document.getElementById("sort").value = this.sort.key;
    this.table.setAttribute("aria-rowcount", this.order.length + 1);
    this.clear();
    this.render();
    this.hooks.onChange();
  }

  clear() {
    for (const row of this.rows.values()) row.remove();
    this.rows.clear();
  }

  get rowHeight() { return parseFloat(getComputedStyle(this.table).getPropertyValue("--row")); }

  render(all = false) {
    const height = this.rowHeight, count = this.order.length;
    const top = Math.max(Math.floor(this.scroller.scrollTop / height) - 4, 0);
    const from = all ? 0 : Math.min(top, Math.max(count - 1, 0));
    const to = all ? Math.min(count, 300) : Math.min(from + Math.ceil(this.scroller.clientHeight / height) + 8, count);
    const wanted = this.order.slice(from, to);
    const keep = new Set(wanted);
    for (const [i, row] of this.rows) {
      if (keep.has(i)) continue;
      row.remove();
      this.rows.delete(i);
    }
    const after = document.getElementById("space-after");
    document.getElementById("space-before").style.height = `${from * height}px`;
    after.style.height = `${(count - to) * height}px`;
    wanted.forEach((i, k) => {
      if (!this.rows.has(i)) this.rows.set(i, this.makeRow(i));
      const row = this.rows.get(i);
      row.setAttribute("aria-rowindex", from + k + 2);
      const next = k + 1 < wanted.length && this.rows.get(wanted[k + 1]) || after;
      if (row.nextSibling !== next) this.body.insertBefore(row, next);
    });
  }

  makeRow(i) {
    const row = document.createElement("tr");
    row.dataset.index = i;
    row.tabIndex = i === this.selected || (this.selected < 0 && i === this.order[0]) ? 0 : -1;
    row.classList.toggle("flagged", Boolean(this.data.flagged[i]));
    row.setAttribute("aria-selected", i === this.selected);
    for (const columns of this.cells) {
      const cell = row.appendChild(document.createElement("td"));
      const [{ key, kind }] = columns;
      cell.className = `${kind === "number" ? "number" : "text"} column-${key.replace(/\W/g, "-")}`;
      for (const column of columns) this.fill(cell.appendChild(document.createElement("span")), column, i);
      if (key === "id") row.appendChild(this.makeCutouts(i));
    }
    const cell = row.appendChild(document.createElement("td"));
    cell.className = "marks";
    for (const mark of ["real", "bogus"]) {
      const button = cell.appendChild(document.createElement("button"));
      button.type = "button";
      button.textContent = mark;
      button.className = mark;
      button.tabIndex = -1;
      button.setAttribute("aria-label", `Mark candidate ${this.data.id[i]} as ${mark}`);
      button.addEventListener("click", (event) => {
        event.stopPropagation();
        this.toggleMark(i, mark);
      });
    }
    row.addEventListener("click", () => this.hooks.onSelect(i));
    row.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && event.target === row) this.hooks.onSelect(i);
    });
    this.showMark(row, i);
    return row;
  }

  fill(span, column, i) {
    const value = column.values[i];
    span.dataset.label = column.label;
    if (column.kind === "number") span.textContent = (column.key === "flux_err" ? "± " : "") + formatNumber(value, column.digits);
    else span.textContent = column.kind === "flag" ? (value ? "yes" : "no") : value ?? "";
    if (column.kind === "text") span.title = value ?? "";
  }

  makeCutouts(i) {
    const cell = document.createElement("td");
    cell.className = "cutouts";
    const { size, panels, count } = this.data.sprites;
    if (i >= count) {
      cell.textContent = "no cutouts: too many candidates";
      return cell;
    }
    const canvas = cell.appendChild(document.createElement("canvas"));
    const side = CUTOUT_ZOOM * size;
    canvas.width = panels.length * (side + CUTOUT_GAP) - CUTOUT_GAP;
    canvas.height = side;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `Cutouts of candidate ${this.data.id[i]}: ${panels.join(", ").toLowerCase()}`);
    this.drawCutouts(canvas, i);
    return cell;
  }

  async drawCutouts(canvas, i) {
    const { size, panels, rows } = this.data.sprites;
    const sheet = await this.sheet(Math.floor(i / rows));
    const context = canvas.getContext("2d");
    const side = CUTOUT_ZOOM * size;
    context.imageSmoothingEnabled = false;
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.strokeStyle = "#4dd2ff";
    context.lineWidth = side / 60;
    panels.forEach((_, k) => {
      const left = k * (side + CUTOUT_GAP);
      context.drawImage(sheet, k * size, (i % rows) * size, size, size, left, 0, side, side);
      if (!this.marked) return;
      // two ticks that leave the candidate itself free
      const [x, y] = [left + side / 2, side / 2];
      context.beginPath();
      context.moveTo(x + 0.17 * side, y);
      context.lineTo(x + 0.32 * side, y);
      context.moveTo(x, y - 0.17 * side);
      context.lineTo(x, y - 0.32 * side);
      context.stroke();
    });
  }

  // A painted sheet; the twelve used last are kept.
  sheet(number) {
    const found = this.sheets.get(number);
    const { uris, panels } = this.data.sprites;
    const kind = (k) => (k >= 2 && this.diverging ? "diverging" : "grey");
    const sheet = found || decodeLevels(uris[number]).then((picture) =>
      paint(picture, panels.map((_, k) => colourTable(kind(k), this.data.sprites.levels))));
    this.sheets.delete(number);
    this.sheets.set(number, sheet);
    if (this.sheets.size > 12) this.sheets.delete(this.sheets.keys().next().value);
    return sheet;
  }

  setDiverging(on) {
    this.diverging = on;
    this.sheets.clear();
    this.redraw();
  }

  setMarked(on) {
    this.marked = on;
    this.redraw();
  }

  redraw() {
    for (const [i, row] of this.rows) {
      const canvas = row.querySelector("canvas");
      if (canvas) this.drawCutouts(canvas, i);
    }
  }

  toggleMark(i, mark) {
    const id = this.data.id[i];
    this.marks.set(id, this.marks.get(id) === mark ? "" : mark);
    if (this.rows.has(i)) this.showMark(this.rows.get(i), i);
    this.hooks.onChange();
  }

  showMark(row, i) {
    const mark = this.marks.get(this.data.id[i]);
    row.dataset.mark = mark;
    for (const button of row.querySelectorAll(".marks button")) {
      button.setAttribute("aria-pressed", button.classList.contains(mark || "none"));
    }
  }

  // Select a candidate and scroll its row into sight.
  select(i, focus) {
    this.selected = i;
    const place = this.order.indexOf(i);
    if (place >= 0) {
      const height = this.rowHeight, top = place * height;
      const head = this.table.tHead.offsetHeight;
      if (top < this.scroller.scrollTop) this.scroller.scrollTop = top;
      else if (top + height + head > this.scroller.scrollTop + this.scroller.clientHeight) {
        this.scroller.scrollTop = top + height + head - this.scroller.clientHeight;
      }
    }
    this.render();
    for (const [k, row] of this.rows) {
      row.setAttribute("aria-selected", k === i);
      row.tabIndex = k === i ? 0 : -1;
    }
    if (focus && this.rows.has(i)) this.rows.get(i).focus({ preventScroll: true });
  }

  // The candidate `step` rows below the selected one.
  neighbour(step) {
    if (!this.order.length) return -1;
    const place = this.order.indexOf(this.selected);
    if (place < 0) return this.order[step > 0 ? 0 : this.order.length - 1];
    return this.order[Math.min(Math.max(place + step, 0), this.order.length - 1)];
  }
}
