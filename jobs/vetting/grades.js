// What a grader does, on its way to the run folder: kept in the browser until the server says that it is there.

const RETRY = 2000;

export async function ask(path, options = {}) {
  const response = await fetch(path, options);
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw Object.assign(new Error(answer.error || response.statusText), { status: response.status });
  return answer;
}

/** The last of some entries that is of an object. */
export function lastOf(objectId, entries) {
  return entries.filter((entry) => entry.object_id === objectId).sort((a, b) => a.made - b.made).at(-1);
}

/** Entries that are not safe yet, oldest first. Each has a key of its own in localStorage, so that tabs do not disturb
    each other; one sent twice counts once, by its name. */
export class Queue {
  constructor(owner, { saved, refused, changed }) {
    this.prefix = `surveybridge-vet ${owner} `;
    this.told = { saved, refused, changed };
    this.entries = new Map();
    this.trouble = "";
    this.sending = false;
    try {
      for (let i = 0; i < localStorage.length; i++) {
        const key = localStorage.key(i);
        if (key.startsWith(this.prefix)) this.entries.set(key, JSON.parse(localStorage.getItem(key)));
      }
    } catch { /* a browser that keeps nothing: then only this page does */ }
    this.send();
  }

  add(entry) {
    const key = this.prefix + entry.entry;
    this.entries.set(key, entry);
    try { localStorage.setItem(key, JSON.stringify(entry)); } catch { /* as above */ }
    this.told.changed();
    this.send();
  }

  async send() {
    if (this.sending) return;
    this.sending = true;
    while (this.entries.size) {
      const [key, entry] = [...this.entries].sort((a, b) => a[1].made - b[1].made)[0];
      try {
        const { made, ...body } = entry;
        const age = Math.max(0, (Date.now() - made) / 1000);
        const answer = await ask("api/grades", {
          method: "POST",
          headers: { "Content-Type": "application/json" },
          body: JSON.stringify({ ...body, age }),
        });
        this.drop(key);
        this.trouble = "";
        this.told.saved(entry, answer);
      } catch (error) {
        if ([400, 404, 413].includes(error.status)) { // it will never be taken
          this.drop(key);
          this.told.refused(entry, error.message);
        } else {
          this.trouble = error.status ? error.message : "no connection";
          this.told.changed();
          await new Promise((resolve) => setTimeout(resolve, RETRY));
        }
      }
    }
    this.sending = false;
    this.told.changed();
  }

  drop(key) {
    this.entries.delete(key);
    try { localStorage.removeItem(key); } catch { /* as above */ }
    this.told.changed();
  }
}

/** 32 hexadecimal digits; crypto.randomUUID is not there on plain http. */
export function newName() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
