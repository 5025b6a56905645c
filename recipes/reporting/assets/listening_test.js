"use strict";

const content = JSON.parse(document.getElementById("content").textContent);
const byId = (id) => document.getElementById(id);
const storageName = `listening-test-${content.test}`;
const fade = 0.012; // seconds of the cross-fade between conditions

// State: everything that a reload must not lose.

function storage(action) {
  try {
    return action(window.localStorage);
  } catch {
    byId("storage").hidden = false;
    return null;
  }
}

function shuffled(values) {
  const mixed = [...values];
  for (let i = mixed.length - 1; i > 0; i--) {
    const j = Math.floor((crypto.getRandomValues(new Uint32Array(1))[0] / 2 ** 32) * (i + 1));
    [mixed[i], mixed[j]] = [mixed[j], mixed[i]];
  }
  return mixed;
}

function newState(participant) {
  const trials = shuffled(content.trials.map((trial) => trial.id));
  const slots = {};
  for (const trial of [content.training, ...content.trials]) slots[trial.id] = shuffled(trial.stimuli);
  return { participant, step: 0, trials, slots, answers: {} };
}

function stored() {
  return storage((store) => JSON.parse(store.getItem(storageName) ?? "null"));
}

let state = stored();

// A stamp tells what this tab has read or saved last from what another tab has saved since.
function save() {
  const last = stored();
  if (last && last.stamp !== state.stamp) return goOnFrom(last);
  state.stamp = crypto.getRandomValues(new Uint32Array(2)).join("-");
  storage((store) => store.setItem(storageName, JSON.stringify(state)));
}

function goOnFrom(other) {
  deck?.pause();
  deck = null;
  state = other;
  openPage();
}

function currentTrial() {
  const id = state.step === 0 ? content.training.id : state.trials[state.step - 1];
  return [content.training, ...content.trials].find((trial) => trial.id === id);
}

function answersOf(trial) {
  state.answers[trial.id] ??= { seconds: 0, time: null, stimuli: {} };
  return state.answers[trial.id];
}

// Audio: all conditions of an item run at once and in step, one of them heard.

// Decoding needs no sound card; the context that plays is opened by the first press of a button.
const rate = 48000;
const decoder = new OfflineAudioContext(1, 1, rate);
let context = null;
const waiting = new Map();

function deliver(id, audio) {
  const entry = waiting.get(id);
  if (!entry) return;
  entry.delivered = true;
  entry.resolve(audio);
}

function fetchAudio(id) {
  if (!waiting.has(id)) {
    const entry = {};
    entry.promise = new Promise((resolve, reject) => {
      entry.resolve = resolve;
      const script = document.createElement("script");
      script.src = `audio/${id}.js`;
      const refuse = () => {
        waiting.delete(id);
        reject(new Error(`audio/${id}.js cannot be loaded`));
      };
      script.onerror = refuse;
      script.onload = () => (entry.delivered ? script.remove() : refuse());
      document.head.append(script);
    });
    waiting.set(id, entry);
  }
  return waiting.get(id).promise;
}

async function decode(id) {
  const audio = await fetchAudio(id);
  const buffers = {};
  for (const [name, text] of Object.entries(audio)) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    buffers[name] = await decoder.decodeAudioData(bytes.buffer);
  }
  waiting.delete(id);
  return buffers;
}

class Deck {
  constructor(buffers) {
    this.buffers = buffers;
    this.duration = Math.max(...Object.values(buffers).map((buffer) => buffer.duration));
    this.region = [0, this.duration];
    this.loop = true;
    this.offset = 0;
    this.started = 0;
    this.voices = null;
    this.heard = null;
  }

  get playing() {
    return this.voices !== null;
  }

  get position() {
    if (!this.playing) return this.offset;
    const [start, end] = this.region;
    const at = this.offset + Math.max(0, context.currentTime - this.started);
    if (this.loop && at >= end) return start + ((at - start) % (end - start));
    return Math.min(at, end);
  }

  select(name) {
    this.heard = name;
    for (const [other, voice] of Object.entries(this.voices ?? {})) {
      voice.gain.gain.setTargetAtTime(other === name ? 1 : 0, context.currentTime, fade / 3);
    }
  }

  play(from = this.position) {
    this.pause();
    context ??= new AudioContext({ sampleRate: rate });
    const [start, end] = this.region;
    this.offset = from >= start && from < end - 0.01 ? from : start;
    context.resume();
    this.started = context.currentTime + 0.02;
    this.voices = {};
    for (const [name, buffer] of Object.entries(this.buffers)) {
      const source = new AudioBufferSourceNode(context, { buffer, loop: this.loop, loopStart: start, loopEnd: end });
      const gain = new GainNode(context, { gain: name === this.heard ? 1 : 0 });
      source.connect(gain).connect(context.destination);
      if (this.loop) source.start(this.started, this.offset);
      else source.start(this.started, this.offset, end - this.offset);
      this.voices[name] = { source, gain };
    }
    const [first] = Object.values(this.voices);
    first.source.onended = () => {
      if (this.voices && Object.values(this.voices)[0] === first) {
        this.pause();
        this.offset = this.region[0];
      }
    };
  }

  pause() {
    if (!this.playing) return;
    const at = this.position;
    const voices = Object.values(this.voices);
    this.voices = null;
    this.offset = at;
    for (const { source, gain } of voices) {
      gain.gain.setTargetAtTime(0, context.currentTime, fade / 3);
      source.stop(context.currentTime + 2 * fade);
    }
  }

  change(values) {
    const at = this.position;
    Object.assign(this, values);
    if (this.playing) this.play(at);
    else if (at < this.region[0] || at >= this.region[1]) this.offset = this.region[0];
  }
}

// Pages.

let deck = null;
let trial = null;
let ticked = 0;

function show(id) {
  for (const page of document.querySelectorAll("main[id]")) page.hidden = page.id !== id;
  window.scrollTo(0, 0);
}

function fail(error) {
  byId("failure").hidden = false;
  byId("failure").textContent = `The test cannot go on: ${error.message}. Reload the page to try again; nothing is lost.`;
}

function openPage() {
  byId("again").dataset.sure = "";
  if (!state) return show("intro");
  if (state.step > state.trials.length) return show("end");
  openTrial().catch(fail);
}

async function openTrial() {
  trial = currentTrial();
  const isTraining = state.step === 0;
  const number = state.trials.length;
  byId("step").textContent = isTraining ? "Practice" : `Recording ${state.step} of ${number}`;
  byId("bar").value = state.step / (number + 1);
  byId("training-note").hidden = !isTraining;
  byId("next").textContent = isTraining ? "Begin the test" : state.step < number ? "Next" : "Finish";
  byId("next").disabled = true;
  byId("conditions").replaceChildren();
  byId("open").textContent = "Loading the audio …";
  show("trial");
  const wanted = trial;
  const buffers = await decode(wanted.id);
  if (trial !== wanted) return;
  deck = new Deck(buffers);
  deck.loop = byId("loop").checked;
  deck.select(trial.reference);
  drawConditions();
  drawOpen();
  ticked = performance.now();
  if (state.step < number) fetchAudio(state.trials[state.step]).catch(() => {});
}

function drawConditions() {
  const list = byId("conditions");
  const reference = document.createElement("li");
  reference.className = "reference active";
  reference.append(playButton("Reference", trial.reference));
  list.replaceChildren(reference);
  state.slots[trial.id].forEach((name, place) => {
    const letter = String.fromCharCode(65 + place);
    const answer = (answersOf(trial).stimuli[name] ??= { rating: 50, moved: false, played: false });
    const line = document.createElement("li");
    line.dataset.name = name;
    line.classList.toggle("untouched", !answer.moved);
    const slider = document.createElement("input");
    Object.assign(slider, { type: "range", min: 0, max: 100, step: 1, value: answer.rating });
    slider.setAttribute("aria-label", `Rating of ${letter}`);
    const shown = document.createElement("output");
    shown.textContent = answer.moved ? answer.rating : "–";
    const rate = () => {
      answer.rating = Number(slider.value);
      answer.moved = true;
      line.classList.remove("untouched");
      shown.textContent = answer.rating;
      drawOpen();
      save();
    };
    slider.addEventListener("input", rate);
    slider.addEventListener("pointerup", rate);
    line.append(playButton(letter, name), slider, shown);
    list.append(line);
  });
}

function playButton(label, name) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = label;
  button.dataset.name = name;
  button.addEventListener("click", () => listen(name));
  return button;
}

function listen(name) {
  deck.select(name);
  if (!deck.playing) deck.play();
  const answer = answersOf(trial).stimuli[name];
  if (answer) answer.played = true;
  for (const line of byId("conditions").children) {
    line.classList.toggle("active", line.querySelector("button").dataset.name === name);
  }
  drawOpen();
  save();
}

function drawOpen() {
  const letters = (test) =>
    state.slots[trial.id]
      .map((name, place) => [answersOf(trial).stimuli[name], String.fromCharCode(65 + place)])
      .filter(([answer]) => !test(answer))
      .map(([, letter]) => letter)
      .join(", ");
  const unheard = letters((answer) => answer.played);
  const unrated = letters((answer) => answer.moved);
  const parts = [];
  if (unheard) parts.push(`still to be heard: ${unheard}`);
  if (unrated) parts.push(`still to be rated: ${unrated}`);
  const text = parts.join("; ");
  byId("open").textContent = text && text[0].toUpperCase() + text.slice(1);
  byId("next").disabled = parts.length > 0;
}

function tick() {
  if (byId("trial").hidden || !deck) return;
  const now = performance.now();
  if (!document.hidden) answersOf(trial).seconds += (now - ticked) / 1000;
  ticked = now;
  byId("play").textContent = deck.playing ? "Pause" : "Play";
  if (document.activeElement !== byId("seek") || deck.playing) byId("seek").value = deck.position / deck.duration;
  const [start, end] = deck.region;
  const part = start > 0 || end < deck.duration ? `, loop ${start.toFixed(1)} to ${end.toFixed(1)} s` : "";
  byId("clock").textContent = `${deck.position.toFixed(1)} of ${deck.duration.toFixed(1)} s${part}`;
}

function next() {
  deck.pause();
  answersOf(trial).time = new Date().toISOString();
  deck = null;
  state.step += 1;
  save();
  openPage();
}

// The file of ratings: only here do conditions get their names back.

function csvField(value) {
  const text = value === null ? "" : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function ratingsFile() {
  const bytes = Uint8Array.from(atob(content.key), (letter) => letter.charCodeAt(0));
  const key = JSON.parse(new TextDecoder().decode(bytes));
  const lines = [["test", "participant", "item", "condition", "kind", "bitrate", "rating", "order", "position", "seconds", "time"]];
  state.trials.forEach((id, order) => {
    const { item } = content.trials.find((other) => other.id === id);
    const { seconds, time, stimuli } = state.answers[id];
    state.slots[id].forEach((name, position) => {
      const [condition, kind, bitrate] = key[name];
      const { rating } = stimuli[name];
      lines.push([content.test, state.participant, item, condition, kind, bitrate, rating, order + 1, position + 1, seconds.toFixed(1), time]);
    });
  });
  return lines.map((line) => line.map(csvField).join(",") + "\r\n").join("");
}

function saveRatings() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([ratingsFile()], { type: "text/csv" }));
  link.download = `ratings-${state.participant.replace(/[^\w-]+/g, "_")}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// Events.

byId("start").addEventListener("submit", (event) => {
  event.preventDefault();
  const participant = byId("participant").value.trim();
  if (!participant) return;
  state = newState(participant);
  save();
  openPage();
});
byId("play").addEventListener("click", () => {
  if (!deck) return;
  if (deck.playing) deck.pause();
  else listen(deck.heard);
  tick();
});
byId("replay").addEventListener("click", () => {
  if (!deck) return;
  deck.play(deck.region[0]);
  listen(deck.heard);
});
byId("loop").addEventListener("change", (event) => deck?.change({ loop: event.target.checked }));
byId("seek").addEventListener("input", (event) => {
  if (!deck) return;
  const at = event.target.value * deck.duration;
  const [start, end] = deck.region;
  if (at < start || at > end) deck.region = [0, deck.duration];
  if (deck.playing) deck.play(at);
  else deck.offset = at;
});
byId("from").addEventListener("click", () => {
  if (deck) deck.change({ region: [Math.max(0, Math.min(deck.position, deck.region[1] - 0.2)), deck.region[1]] });
});
byId("to").addEventListener("click", () => {
  if (deck) deck.change({ region: [deck.region[0], Math.min(deck.duration, Math.max(deck.position, deck.region[0] + 0.2))] });
});
byId("whole").addEventListener("click", () => deck?.change({ region: [0, deck.duration] }));
byId("next").addEventListener("click", next);
byId("save").addEventListener("click", saveRatings);
byId("again").addEventListener("click", (event) => {
  if (!event.target.dataset.sure) {
    event.target.dataset.sure = "yes";
    event.target.textContent = "This removes the ratings from this device. Press again to go on";
    return;
  }
  state = null;
  storage((store) => store.removeItem(storageName));
  window.location.reload();
});
document.addEventListener("keydown", (event) => {
  const typing = ["INPUT", "BUTTON"].includes(event.target.tagName) && event.target.type !== "range";
  if (!deck || byId("trial").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === " " && !typing) {
    event.preventDefault();
    byId("play").click();
  } else if (event.key === "0" || event.key.toLowerCase() === "r") {
    listen(trial.reference);
  } else if (/^[1-9]$/.test(event.key)) {
    const name = state.slots[trial.id][Number(event.key) - 1];
    if (name) listen(name);
  }
});
window.addEventListener("pagehide", () => {
  if (state && stored()?.stamp === state.stamp) save();
});
// What another tab began may reach this one only after it has been opened.
window.addEventListener("storage", () => {
  const last = stored();
  if (!state && last) goOnFrom(last);
});
for (const [target, name] of [[window, "focus"], [document, "visibilitychange"]]) {
  target.addEventListener(name, () => {
    const last = stored();
    if (!document.hidden && last && last.stamp !== state?.stamp) goOnFrom(last);
  });
}
setInterval(tick, 100);
storage((store) => store.getItem(storageName));
openPage();
