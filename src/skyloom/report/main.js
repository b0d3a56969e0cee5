// Start: read the data of the page, connect the table, the frame view and the controls.

function readData() {
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const values = (key) => data.columns.find((column) => column.key === key)?.values;
  const n = data.flagged.length;
  data.id = values("id") || [];
  data.x = values("x") || new Array(n).fill(null);
  data.y = values("y") || new Array(n).fill(null);
  [data.snr, data.ra, data.dec] = [values("snr"), values("ra"), values("dec")];
  if (!data.ra || !data.dec) data.ra = data.dec = undefined;
  data.signOf = values("sign") || data.snr || values("flux") || new Array(n).fill(0);
  return data;
}

function start() {
  const data = readData();
  const byId = (id) => document.getElementById(id);
  const marks = new Marks(data.key);
  const say = (text) => { byId("status").textContent = text; };
  let table = null;

  const view = new FrameView(byId("frame"), data, {
    isShown: (i) => !table || Boolean(table.shown[i]),
    colourOf: (i) => {
      const mark = marks.get(data.id[i]);
      const colour = mark === "real" ? "#5fe08a" : mark === "bogus" ? "#a9adb5" : data.flagged[i] ? "#ffb34d" : "#4dd2ff";
      return { colour, dashed: Boolean(data.flagged[i]) };
    },
    onPick: (i) => select(i, false),
    onRead: (text) => { byId("readout").textContent = text || "Move over the image to read positions and values."; },
    onPlane: (key) => {
      for (const button of document.querySelectorAll("[data-plane]")) {
        button.setAttribute("aria-pressed", button.dataset.plane === key);
      }
      if (!view.blinking || (key !== "science" && key !== "template")) byId("blink").setAttribute("aria-pressed", "false");
    },
  });

  if (data.id.length) {
    table = new CandidateTable(data, marks, { onSelect: (i) => open(i), onChange: showCounts });
    connectFilters();
  }

  function select(i, focus) {
    if (i < 0) return;
    table.select(i, focus);
    view.goTo(i);
    showDetails(i);
    say(`Candidate ${data.id[i]} selected.`);
  }

  // Select, and on narrow windows bring the frame into sight.
  function open(i) {
    select(i, true);
    if (window.matchMedia("(max-width: 1080px)").matches) byId("frame").scrollIntoView({ block: "nearest" });
  }

  function showDetails(i) {
    const list = byId("details");
    list.replaceChildren();
    byId("details-title").textContent = `Candidate ${data.id[i]}`;
    for (const column of data.columns) {
      const value = column.values[i];
      if (value === null || value === "") continue;
      const pair = list.appendChild(document.createElement("div"));
      const term = pair.appendChild(document.createElement("dt"));
      term.textContent = column.label;
      term.title = column.description;
      const text = typeof value === "number" ? formatNumber(value, column.digits) : typeof value === "boolean" ? (value ? "yes" : "no") : value;
      pair.appendChild(document.createElement("dd")).textContent = column.unit ? `${text} ${column.unit}` : text;
    }
    if (data.ra && data.ra[i] !== null && data.dec[i] !== null) {
      const pair = list.appendChild(document.createElement("div"));
      pair.className = "wide";
      pair.appendChild(document.createElement("dt")).textContent = "RA, Dec";
      pair.appendChild(document.createElement("dd")).textContent =
        `${sexagesimal(data.ra[i], true)} ${sexagesimal(data.dec[i], false)}`;
    }
  }

  function showCounts() {
    if (!table) return;
    byId("count").textContent = `${table.order.length.toLocaleString("en")} of ${data.id.length.toLocaleString("en")} shown`;
    byId("marked").textContent = `${marks.count("real")} real, ${marks.count("bogus")} bogus`
      + (marks.kept ? "" : " (this browser keeps no marks: export them before you leave)");
    byId("export").disabled = marks.count("real") + marks.count("bogus") === 0;
    byId("nothing").hidden = table.order.length > 0;
    view.draw();
  }

  function connectFilters() {
    const filter = (id, name, read) => byId(id).addEventListener("input", () => {
      table.filter[name] = read(byId(id));
      table.update();
    });
    filter("search", "text", (input) => input.value);
    filter("snr", "snr", (input) => Number(input.value));
    filter("sign", "sign", (input) => input.value);
    filter("mark", "mark", (input) => input.value);
    filter("hide-flagged", "hideFlagged", (input) => input.checked);
    byId("snr").addEventListener("input", () => { byId("snr-value").textContent = Number(byId("snr").value).toFixed(1); });
    byId("sort").addEventListener("input", () => table.sortBy(byId("sort").value, undefined));
    byId("export").addEventListener("click", () => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([marks.csv(data)], { type: "text/csv" }));
      link.download = "marks.csv";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
      say("Marks exported.");
    });
    showCounts();
  }

  const toggle = (id, apply) => byId(id).addEventListener("click", () => {
    const on = byId(id).getAttribute("aria-pressed") !== "true";
    byId(id).setAttribute("aria-pressed", on);
    apply(on);
  });
  toggle("blink", (on) => view.blink(on));
  toggle("circles", (on) => { view.circles = on; view.draw(); table?.setMarked(on); });
  toggle("colour", (on) => { view.setDiverging(on); table?.setDiverging(on); });
  for (const button of document.querySelectorAll("[data-plane]")) {
    button.addEventListener("click", () => { view.blink(false); view.show(button.dataset.plane); });
  }
  byId("zoom-in").addEventListener("click", () => view.zoomBy(1.5));
  byId("zoom-out").addEventListener("click", () => view.zoomBy(1 / 1.5));
  byId("fit").addEventListener("click", () => view.fit());

  const move = (step) => () => { if (table) select(table.neighbour(step), true); };
  const mark = (name) => () => {
    if (!table || table.selected < 0) return;
    table.toggleMark(table.selected, name);
    say(`Candidate ${data.id[table.selected]}: ${marks.get(data.id[table.selected]) || "no mark"}.`);
  };
  const press = (id) => () => byId(id).click();
  const keys = {
    j: move(1), k: move(-1), ArrowDown: move(1), ArrowUp: move(-1), PageDown: move(8), PageUp: move(-8),
    Home: move(-Infinity), End: move(Infinity), r: mark("real"), b: mark("bogus"), " ": press("blink"),
    c: press("circles"), "+": press("zoom-in"), "=": press("zoom-in"), "-": press("zoom-out"), 0: press("fit"),
    "/": () => byId("search")?.focus(),
  };
  data.frames.forEach((frame, k) => { keys[k + 1] = () => { view.blink(false); view.show(frame.key); }; });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const target = event.target, tag = target.tagName;
    const typing = tag === "SELECT" || tag === "TEXTAREA" || (tag === "INPUT" && target.type !== "checkbox");
    if (typing) {
      if (event.key === "Escape") target.blur();
      return;
    }
    const inTable = target.closest("#scroller") !== null;
    const moving = event.key.startsWith("Arrow") || ["PageDown", "PageUp", "Home", "End"].includes(event.key);
    if (moving && !inTable) return;
    if (event.key === " " && (tag === "BUTTON" || tag === "SUMMARY" || tag === "INPUT" || tag === "A")) return;
    const action = keys[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });

  const themes = ["auto", "light", "dark"];
  const setTheme = (theme) => {
    if (theme === "auto") delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = theme;
    byId("theme").textContent = `Theme: ${theme}`;
    byId("theme").value = theme;
  };
  let theme = "auto";
  try { theme = localStorage.getItem("skyloom:theme") || "auto"; } catch { /* no storage: follow the system */ }
  setTheme(themes.includes(theme) ? theme : "auto");
  byId("theme").addEventListener("click", () => {
    const next = themes[(themes.indexOf(byId("theme").value) + 1) % themes.length];
    setTheme(next);
    try { localStorage.setItem("skyloom:theme", next); } catch { /* no storage: this visit only */ }
  });

  byId("print").addEventListener("click", async () => {
    if (table) await Promise.all(data.sprites.uris.slice(0, 12).map((_, k) => table.sheet(k)));
    window.print();
  });
  window.addEventListener("beforeprint", () => table?.render(true));
  window.addEventListener("afterprint", () => table?.render());

  view.show("difference");
  document.documentElement.dataset.ready = "yes";
  window.skyloomReport = { data, view, table, marks, select };
}

start();
