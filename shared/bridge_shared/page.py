"""The page at the admin port's `/`: live calls, their transcripts as they grow, pods and their load, answer times.

One static page without a build step. It holds nothing itself: it asks `/v1` with the token that is typed in (or that
stands behind the `#` of its address, which browsers do not send), and `/metrics` of the pod that served it.
"""

from __future__ import annotations

from typing import Final

PAGE: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Bridge</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
  body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1d2630 }
  h1 { font-size: 1.3rem } h2 { font-size: 1rem; margin: 1.6rem 0 .4rem }
  table { border-collapse: collapse; width: 100% } th { text-align: left; font-weight: 600; color: #5a6773 }
  th, td { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #e4e8ec; vertical-align: top }
  tr.call { cursor: pointer } tr.call:hover, tr.chosen { background: #f2f6fa }
  #lines p { margin: .2rem 0 } .user { color: #0b5d8f } .cut { color: #8a5a00 } #why { color: #b00020 }
  input { font: inherit; width: 22rem }
</style>
<h1>Bridge</h1>
<form id="door">Token: <input id="token" type="password" autocomplete="off"> <button>Show</button></form>
<p id="why"></p>
<h2>Live calls <span id="many"></span></h2>
<table><thead><tr><th>call<th>state<th>bridge<th>since (UTC)<th>edge<th>worker</thead><tbody id="calls"></tbody></table>
<h2>Transcript <span id="whose"></span></h2><div id="lines"></div>
<h2>Pods</h2>
<table><thead><tr><th>pod<th>role<th>calls<th>of<th>agents<th>state</thead><tbody id="pods"></tbody></table>
<h2>Answers of this pod's calls</h2><p id="answers">none yet</p>
<script>
const at = id => document.getElementById(id);
let token = decodeURIComponent(location.hash.slice(1)) || sessionStorage.getItem("token") || "", chosen = "";
at("door").onsubmit = event => {
  event.preventDefault(); token = at("token").value; sessionStorage.setItem("token", token); look();
};
async function ask(path) {
  const answer = await fetch(path, {headers: {Authorization: "Bearer " + token}});
  if (!answer.ok) throw new Error((await answer.json()).detail);
  return answer.json();
}
function row(cells, name) {
  const line = document.createElement("tr");
  line.className = name || "";
  for (const cell of cells) line.insertCell().textContent = cell;
  return line;
}
async function look() {
  if (!token) return;
  try {
    const {calls, total} = await ask("v1/calls"), {pods} = await ask("v1/pods");
    at("many").textContent = "(" + total + ")" + (total > calls.length ? ", the oldest " + calls.length : "");
    if (!calls.some(call => call.conversation_id === chosen)) chosen = calls.length ? calls[0].conversation_id : chosen;
    at("calls").replaceChildren(...calls.map(call => {
      const id = call.conversation_id, since = (call.active_at || call.created_at).slice(0, 19).replace("T", " ");
      const line = row([id, call.state, call.bridge, since, call.edge, call.owner],
                       id === chosen ? "call chosen" : "call");
      line.onclick = () => { chosen = id; look(); };
      return line;
    }));
    at("pods").replaceChildren(...pods.map(pod => row([pod.pod, pod.role, pod.calls, pod.capacity, pod.agents,
                                                       pod.draining ? "draining" : "ready"])));
    if (chosen) {
      const {lines} = await ask("v1/calls/" + chosen + "/transcript");
      at("whose").textContent = "of " + chosen;
      at("lines").replaceChildren(...lines.map(line => {
        const text = document.createElement("p");
        text.className = line.role + (line.interrupted ? " cut" : "");
        text.textContent = line.at.slice(11, 19) + "  " + line.role + ": " + line.content
                         + (line.interrupted ? "  (interrupted)" : "");
        return text;
      }));
    }
    at("why").textContent = "";
  } catch (error) { at("why").textContent = error.message; }
  const metrics = await (await fetch("metrics")).text();
  const value = (part, hop) => Number((metrics.match(
    new RegExp("bridge_turn_seconds_" + part + '\\\\{until="' + hop + '"\\\\} (.*)')) || [])[1]);
  const mean = hop => Math.round(value("sum", hop) / value("count", hop) * 1000);
  const many = value("count", "heard");
  if (many) at("answers").textContent = many + " answers; on average " + mean("text") + " ms to the first text, "
    + mean("audio") + " ms to the first audio, " + mean("heard") + " ms until the caller hears it";
}
look(); setInterval(look, 2000);
</script>
"""
