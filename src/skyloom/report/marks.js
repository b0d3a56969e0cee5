// What the reviewer says of each candidate: real or bogus. Kept in the browser's storage, exported as CSV.

class Marks {
  constructor(key) {
    this.key = `skyloom:marks:${key}`;
    this.kept = true;
    this.of = {};
    try {
      const stored = JSON.parse(localStorage.getItem(this.key) || "{}");
      for (const [id, mark] of Object.entries(stored)) if (mark === "real" || mark === "bogus") this.of[id] = mark;
    } catch {
      this.kept = false;
    }
  }

  get(id) { return Object.hasOwn(this.of, id) ? this.of[id] : ""; }

  set(id, mark) {
    if (mark) this.of[id] = mark; else delete this.of[id];
    try {
      localStorage.setItem(this.key, JSON.stringify(this.of));
    } catch {
      this.kept = false;
    }
  }

  count(mark) { return Object.values(this.of).filter((one) => one === mark).length; }

  // One line for each marked candidate (RFC 4180), with its numbers.
  csv(data) {
    const keys = ["id", "x", "y", "ra", "dec", "snr", "flux", "flux_err", "flags"];
    const columns = keys.map((key) => data.columns.find((column) => column.key === key)).filter(Boolean);
    const quote = (value) => {
      const text = value === null || value === undefined ? "" : String(value);
      return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    const lines = [[...columns.map((column) => column.key), "mark", "science", "template"]];
    data.id.forEach((id, i) => {
      if (this.get(id)) lines.push([...columns.map((column) => column.values[i]), this.get(id), data.science, data.template]);
    });
    return lines.map((line) => line.map(quote).join(",")).join("\r\n") + "\r\n";
  }
}
