"use strict"
const root = document.documentElement, $ = id => document.getElementById(id)
const dark = () => root.dataset.theme ? root.dataset.theme == "dark" : matchMedia("(prefers-color-scheme: dark)").matches

$("theme").onclick = () => localStorage.setItem("theme", root.dataset.theme = dark() ? "light" : "dark")
$("menu").onclick = () => $("menu").setAttribute("aria-expanded", $("nav").classList.toggle("open"))

// Every page whose words begin with what was typed; a hit in the title counts most, then headings, then the text
function search(typed) {
  const words = typed.toLowerCase().split(/[^\p{L}\p{N}_]+/u).filter(Boolean)
  if (!words.length) return []
  const count = (text, w) => text.split(new RegExp("(?<![\\p{L}\\p{N}])" + w, "u")).length - 1
  return PAGES.map(p => {
    const each = words.map(w => 20*count(p.title.toLowerCase(), w) + 5*count(p.headings.toLowerCase(), w) + Math.min(count(p.lower ??= p.text.toLowerCase(), w), 20))
    return {p, score: Math.min(...each) && each.reduce((a, b) => a + b)}
  }).filter(hit => hit.score).sort((a, b) => b.score - a.score).slice(0, 12).map(({p}) => {
    const at = Math.max(p.lower.indexOf(words[0]), 0)
    return {...p, around: p.text.slice(Math.max(at - 40, 0), at + 80)}
  })
}
$("q").oninput = () => {
  const hits = search($("q").value)
  $("hits").hidden = !$("q").value
  $("hits").replaceChildren(...hits.map(h => {
    const li = document.createElement("li"), a = document.createElement("a"), small = document.createElement("small")
    a.href = ROOT + h.url; a.textContent = h.title; small.textContent = h.around
    a.append(small); li.append(a)
    return li
  }))
  if (!hits.length) $("hits").textContent = "Nothing found"
}
$("q").form.onsubmit = e => { e.preventDefault(); $("hits").querySelector("a")?.click() }
addEventListener("keydown", e => {
  if (e.key == "/" && !/input|textarea/i.test(document.activeElement.tagName)) { e.preventDefault(); $("q").focus() }
  if (e.key == "Escape") $("hits").hidden = true
})
$("nav").querySelector("[aria-current]")?.scrollIntoView({block: "nearest"})
