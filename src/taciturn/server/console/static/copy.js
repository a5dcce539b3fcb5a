"use strict";
// Buttons that copy a secret that is shown once: <button data-copy="#id of the text">.
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const source = document.querySelector(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(source.textContent);
    button.textContent = "Copied";
  } catch {
    // Without https browsers keep the clipboard: mark the text, for the keyboard.
    getSelection().selectAllChildren(source);
    button.textContent = "Marked: copy it with the keyboard";
  }
});
