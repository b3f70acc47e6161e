"use strict";
(() => {
  const element = document.getElementById("binding");
  const binding = JSON.parse(element.textContent);
  const cards = [...document.querySelectorAll(".card[data-decidable]")];
  const memory = "stlm-review-" + binding.review;
  const said = new Map();

  const remember = () => {
    // A page opened from a file may have no storage; then a reload starts anew.
    try { localStorage.setItem(memory, JSON.stringify([...said])); } catch { /* as said */ }
  };

  const show = () => {
    let accepted = 0;
    for (const card of cards) {
      const word = said.get(card.dataset.name);
      accepted += word === "accept";
      if (word) card.dataset.said = word; else delete card.dataset.said;
      for (const button of card.querySelectorAll("button")) {
        button.setAttribute("aria-pressed", String(button.value === word));
      }
    }
    const bold = (number) => Object.assign(document.createElement("b"), { textContent: number });
    document.querySelector(".tally").replaceChildren(
      bold(accepted), " accepted, ", bold(said.size - accepted), " rejected, ", bold(cards.length - said.size), " undecided");
    document.getElementById("download").disabled = said.size === 0;
    for (const button of document.querySelectorAll("[data-all]")) button.disabled = said.size === cards.length;
  };

  const decide = (card, word) => {
    if (!word || said.get(card.dataset.name) === word) said.delete(card.dataset.name);
    else said.set(card.dataset.name, word);
    remember();
    show();
  };

  for (const card of cards) {
    for (const button of card.querySelectorAll("button")) button.addEventListener("click", () => decide(card, button.value));
  }
  for (const button of document.querySelectorAll("[data-all]")) {
    button.addEventListener("click", () => {
      for (const card of cards) if (!said.has(card.dataset.name)) said.set(card.dataset.name, button.dataset.all);
      remember();
      show();
    });
  }
  document.addEventListener("keydown", (event) => {
    const words = { a: "accept", r: "reject", u: "" };
    const card = event.target.closest?.(".card[data-decidable]");
    const key = event.key.toLowerCase();
    if (!card || !(key in words) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    said.delete(card.dataset.name);
    decide(card, words[key]);
    cards[cards.indexOf(card) + 1]?.focus();
  });
  document.getElementById("download").addEventListener("click", () => {
    const decisions = Object.fromEntries([...said].sort(([a], [b]) => (a < b ? -1 : 1)));
    const text = JSON.stringify({ ...binding, decisions }, null, 1) + "\n";
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.download = element.dataset.file;
    link.click();
    URL.revokeObjectURL(link.href);
  });

  try {
    const names = new Set(cards.map((card) => card.dataset.name));
    for (const [name, word] of JSON.parse(localStorage.getItem(memory) ?? "[]")) {
      if (names.has(name) && (word === "accept" || word === "reject")) said.set(name, word);
    }
  } catch { /* nothing remembered */ }
  show();
})();
