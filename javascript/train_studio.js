// The page of Train Studio: fetches the fragments the server made, and sends what the user clicks. No decisions here.
window.trainStudio = window.trainStudio || (() => {
    "use strict";

    const POLL_MS = {active: 1000, idle: 4000, hidden: 15000, lost: 3000, rootless: 500};
    const OUR_PAGE = {"X-Train-Studio-Page": "1"};
    const CLICKS = {
        tsPost: post, tsSelect: showJob, tsCopy: copyOf, tsPrompt: addToPrompt, tsReproduce: reproduce, tsLoad: load,
    };
    const CLICKABLE = "[data-ts-post], [data-ts-select], [data-ts-copy], [data-ts-prompt], [data-ts-reproduce], [data-ts-load]";
    let selected = "";
    let published = null;
    let timer = 0;
    let isRefreshing = false;
    let isStale = false;

    const root = () => document.getElementById("train_studio_root");  // says where the API is

    // ---- fetching -------------------------------------------------------------------------------------------------

    async function refresh() {
        if (isRefreshing) {
            isStale = true;
            return;
        }
        isRefreshing = true;
        clearTimeout(timer);
        let wait = POLL_MS.rootless;
        try {
            do {
                isStale = false;
                const page = root();
                if (page) wait = await refreshAll(page);
            } while (isStale);
        } finally {
            isRefreshing = false;
            timer = setTimeout(refresh, wait);
        }
    }

    async function refreshAll(page) {
        document.cookie = `train_studio_page=${page.dataset.secret}; SameSite=Strict; path=/`;
        try {
            for (const fragment of document.querySelectorAll("[data-ts-fragment]")) await refreshFragment(page, fragment);
        } catch (error) {
            line(page, "ts-connection").textContent = `${error.message || "Connection lost"}, retrying.`;
            return POLL_MS.lost;
        }
        line(page, "ts-connection").textContent = "";
        refreshCards();
        showNewest();
        if (document.hidden) return POLL_MS.hidden;
        return document.querySelector("[data-ts-active]") ? POLL_MS.active : POLL_MS.idle;
    }

    async function refreshFragment(page, fragment) {
        const query = new URLSearchParams({selected, seen: fragment.tsVersion || ""});
        const response = await fetch(`${page.dataset.api}/page/${fragment.dataset.tsFragment}?${query}`, {
            cache: "no-store", headers: OUR_PAGE, signal: AbortSignal.timeout?.(20000),
        }).catch(() => { throw new Error("Connection lost"); });
        if (response.status === 204) return;
        if (response.status === 401) throw new Error("The server was restarted or needs a login: reload this page");
        if (!response.ok) throw new Error(`The server answered ${response.status}`);
        const {version, html} = await response.json();
        if (applyHtml(fragment, html)) fragment.tsVersion = version;
    }

    // ---- showing --------------------------------------------------------------------------------------------------

    // Replaces the parts that changed. False when a part in use had to be left as it is: it is asked for again.
    function applyHtml(fragment, html) {
        const template = document.createElement("template");
        template.innerHTML = html;
        const fresh = [...template.content.children];
        const names = fresh.map((part) => part.dataset.tsPart);
        const old = new Map([...fragment.children].map((part) => [part.dataset.tsPart, part]));
        let isComplete = true;
        for (const [name, part] of old) {
            if (names.includes(name)) continue;
            if (isInUse(part)) isComplete = false;
            else part.remove();
        }
        let before = null;
        for (const part of fresh) {
            part.tsSource = part.outerHTML;
            const current = old.get(part.dataset.tsPart);
            if (!current) {
                if (before) before.after(part);
                else fragment.prepend(part);
                keepPlaces(null, part);
                before = part;
            } else if (current.tsSource === part.tsSource) {
                before = current;
            } else if (isInUse(current)) {
                isComplete = false;
                before = current;
            } else {
                replacePart(current, part);
                before = part;
            }
        }
        return isComplete;
    }

    function isInUse(part) {
        const focus = document.activeElement;
        if (part.contains(focus) && focus.matches("input, textarea, select")) return true;
        const selection = window.getSelection();
        return selection && !selection.isCollapsed && selection.containsNode(part, true);
    }

    function replacePart(current, part) {
        const focus = current.contains(document.activeElement) ? identity(document.activeElement) : null;
        const pictures = new Map([...current.querySelectorAll("img")].map((image) => [image.src, image]));
        const places = new Map([...current.querySelectorAll("[data-ts-keep]")].map((kept) => [kept.dataset.tsKeep, {
            open: kept.open, left: kept.scrollLeft, isAtEnd: kept.tsIsUnseen || kept.scrollLeft + kept.clientWidth >= kept.scrollWidth - 4,
            value: kept.value, isTyped: kept.value !== kept.defaultValue,
        }]));
        current.replaceWith(part);
        for (const image of part.querySelectorAll("img")) {  // those that are loaded already do not flicker
            const loaded = pictures.get(image.src);
            if (loaded && loaded.alt === image.alt) image.replaceWith(loaded);
        }
        keepPlaces(places, part);
        if (focus) [...part.querySelectorAll("button, a, summary, [tabindex]")].find((one) => identity(one) === focus)?.focus();
    }

    // A strip of pictures stays where it was scrolled to; at its end, or when it is new, it follows the newest.
    function keepPlaces(places, part) {
        for (const kept of part.querySelectorAll("[data-ts-keep]")) {
            const place = places?.get(kept.dataset.tsKeep);
            if (place?.open) kept.open = true;
            if (place?.isTyped) kept.value = place.value;
            kept.scrollLeft = !place || place.isAtEnd ? kept.scrollWidth : place.left;
            kept.tsIsUnseen = kept.clientWidth === 0;
        }
    }

    // What was made while the tab was hidden could not be scrolled.
    function showNewest() {
        for (const kept of document.querySelectorAll("[data-ts-keep]")) {
            if (!kept.tsIsUnseen || kept.clientWidth === 0) continue;
            kept.tsIsUnseen = false;
            kept.scrollLeft = kept.scrollWidth;
        }
    }

    const identity = (element) => JSON.stringify({...element.dataset}) + element.textContent;

    function line(page, name) {
        let element = page.querySelector(`.${name}`);
        if (!element) {
            element = document.createElement("div");
            element.className = name;
            element.setAttribute("role", "status");
            page.prepend(element);
        }
        return element;
    }

    function say(text) {
        const page = root();
        if (!page) return;
        line(page, "ts-message").textContent = text;
        if (text) line(page, "ts-message").scrollIntoView({block: "nearest"});
    }

    // ---- clicks ---------------------------------------------------------------------------------------------------

    async function post(button, path) {
        if (button.dataset.tsConfirm && !window.confirm(button.dataset.tsConfirm)) return;
        const body = JSON.parse(button.dataset.tsBody || "{}");
        for (const field of button.closest(".ts-form")?.querySelectorAll("input[name]") || []) {
            if (!field.reportValidity()) return;
            body[field.name] = Number(field.value);
        }
        button.disabled = true;
        try {
            const response = await fetch(`${root().dataset.api}/${path}`, {
                method: "POST", headers: {...OUR_PAGE, "Content-Type": "application/json"}, body: JSON.stringify(body),
            });
            const answer = response.ok ? {} : await response.json().catch(() => ({}));
            say(response.ok ? "" : [answer.message || `The server answered ${response.status}.`, answer.hint].filter(Boolean).join(" "));
        } catch {
            say("Connection lost: nothing was sent.");
        }
        button.disabled = false;
        refresh();
    }

    function showJob(_button, jobId) {
        selected = jobId;
        refresh().then(() => {
            const live = document.querySelector("[data-ts-fragment=live]");
            if (live?.getBoundingClientRect().top < 0) live.scrollIntoView();
        });
    }

    async function copyOf(button, text) {
        const label = button.textContent;
        button.textContent = await copy(text) ? "copied" : "not copied";
        setTimeout(() => { button.textContent = label; }, 1500);
    }

    async function copy(text) {
        try {
            await navigator.clipboard.writeText(text);
            return true;
        } catch {  // a page over plain http has no clipboard
            const area = document.createElement("textarea");
            area.value = text;
            document.body.append(area);
            area.select();
            const isCopied = document.execCommand("copy");
            area.remove();
            return isCopied;
        }
    }

    // Appends like the host's own cards, which would take the text out again when it is there already.
    function addToPrompt(button, json) {
        const {text, negative} = JSON.parse(json);
        const boxes = [["#txt2img_prompt textarea", text], ["#txt2img_neg_prompt textarea", negative]];
        if (root()?.dataset.hasPrompt !== "1" || !document.querySelector(boxes[0][0])) {
            copyOf(button, text || negative);
            return;
        }
        for (const [selector, words] of boxes) {
            const box = document.querySelector(selector);
            if (!words || !box || contains(box.value, words)) continue;
            const separator = window.opts?.extra_networks_add_text_separator ?? " ";
            type(box, box.value ? box.value + separator + words : words);
        }
        if (typeof switch_to_txt2img === "function") switch_to_txt2img();
    }

    // Whether the LoRA or hypernetwork, at any strength, or the word stands in the prompt.
    function contains(prompt, words) {
        const tag = words.match(/^<(lora|hypernet):[^:>]+:/);
        if (tag) return prompt.includes(tag[0]);
        const literal = words.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&");
        return new RegExp(`(^|[^\\p{L}\\p{N}_-])${literal}($|[^\\p{L}\\p{N}_-])`, "u").test(prompt);
    }

    function reproduce(_button, text) {
        type(document.querySelector("#train_studio_infotext textarea, #train_studio_infotext input"), text);
        document.getElementById("train_studio_paste")?.click();
    }

    function load(_button, source) {
        type(document.querySelector("#train_studio_load_source textarea, #train_studio_load_source input"), source);
        document.getElementById("train_studio_load_button")?.click();
    }

    function type(box, text) {
        if (!box) return;
        box.value = text;
        if (typeof updateInput === "function") updateInput(box);
        else box.dispatchEvent(new Event("input", {bubbles: true}));
    }

    // The numbers of a block editor's sliders, as a list, into the text it is for; a shape sets them all.
    function writeBlocks(editor, changed) {
        if (changed.name === "target") return;
        const sliders = [...editor.querySelectorAll("input[type=range]")];
        if (changed.name === "shape") changed.value.split(",").forEach((number, index) => { sliders[index].value = number; });
        for (const slider of sliders) slider.nextElementSibling.textContent = slider.value;
        const target = editor.querySelector("[name=target]").value;
        type(document.querySelector(`#${target} textarea, #${target} input`), sliders.map((slider) => slider.value).join(", "));
    }

    // ---- the host -------------------------------------------------------------------------------------------------

    const click = (id) => document.getElementById(id)?.dispatchEvent(new Event("click"));

    // The server holds the list of cards; it makes a new one when its hidden button is clicked. One does for all kinds.
    // The list of checkpoints at the top has a button of its own.
    function refreshCards() {
        const marks = document.querySelector("[data-ts-published]")?.dataset;
        if (!marks) return;
        const counts = {cards: marks.tsPublished, checkpoints: marks.tsCheckpoints ?? "0"};
        if (published && counts.cards !== published.cards) {
            for (const tab of ["txt2img", "img2img"]) click(`${tab}_lora_extra_refresh_internal`);
        }
        if (published && counts.checkpoints !== published.checkpoints) {
            for (const id of ["refresh_sd_model_checkpoint", "forge_refresh_checkpoint"]) click(id);
        }
        published = counts;
    }

    document.addEventListener("click", (event) => {
        setTimeout(showNewest, 50);  // the click may have opened our tab
        const button = event.target.closest?.(CLICKABLE);
        if (!button?.closest("#tab_train_studio, #train_studio_root")) return;
        const kind = Object.keys(CLICKS).find((name) => name in button.dataset);
        CLICKS[kind](button, button.dataset[kind]);
    });
    document.addEventListener("input", (event) => {
        const editor = event.target.closest?.("#tab_train_studio [data-ts-blocks]");
        if (editor) writeBlocks(editor, event.target);
    });
    document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
    refresh();

    return {refresh, select: (jobId) => showJob(null, jobId)};
})();
