"use strict";

// Tables: a header's button sorts by its column; what has no value stays below, equal rows keep their order.
function sortBy(header) {
  const row = header.parentElement;
  const body = header.closest("table").tBodies[0];
  const before = header.getAttribute("aria-sort");
  const first = header.dataset.first;
  const other = first === "ascending" ? "descending" : "ascending";
  const direction = before === first ? other : first;
  for (const cell of row.cells) cell.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", direction);
  const sign = direction === "ascending" ? 1 : -1;
  const value = (line) => {
    const cell = line.cells[header.cellIndex];
    if (!("value" in cell.dataset)) return cell.classList.contains("absent") ? null : cell.textContent.trim();
    return cell.dataset.value === "inf" ? Infinity : Number(cell.dataset.value);
  };
  const compare = (a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === null || y === null) return (x === null) - (y === null);
    if (typeof x === "number" && typeof y === "number") return x === y ? 0 : sign * (x < y ? -1 : 1);
    return sign * String(x).localeCompare(String(y), "en", { numeric: true });
  };
  body.append(...[...body.rows].sort(compare));
}

for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => sortBy(button.closest("th")));
}

// Players: one at a time; a line runs over the spectrogram, and a click in it plays from there.
const players = [...document.querySelectorAll("audio")];
const keepPosition = document.getElementById("keep-position");
let last = null;

function start(player) {
  player.play().catch((error) => {
    if (error.name !== "AbortError") throw error; // another player was started before this one began
  });
}

function sampleOf(player) {
  return player.closest(".sample");
}

function moveHead(player) {
  const head = sampleOf(player).querySelector(".head");
  if (player.duration) head.style.left = `${(100 * player.currentTime) / player.duration}%`;
  if (!player.paused) requestAnimationFrame(() => moveHead(player));
}

for (const player of players) {
  player.addEventListener("play", () => {
    const sameRow = last && last !== player && last.closest("tr") === player.closest("tr");
    if (keepPosition?.checked && sameRow && last.currentTime < player.duration && !last.ended) {
      player.currentTime = last.currentTime;
    }
    for (const other of players) if (other !== player) other.pause();
    for (const shown of document.querySelectorAll(".playing")) shown.classList.remove("playing");
    sampleOf(player).classList.add("playing");
    last = player;
    moveHead(player);
  });
  player.addEventListener("seeked", () => moveHead(player));
}

for (const picture of document.querySelectorAll("button.mel")) {
  picture.addEventListener("click", (event) => {
    const player = picture.parentElement.querySelector("audio");
    if (event.detail === 0) {
      if (player.paused) start(player);
      else player.pause();
      return; // by keyboard: there is no place in the picture
    }
    const box = picture.getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    last = player;
    if (player.duration) player.currentTime = share * player.duration;
    start(player);
  });
}
