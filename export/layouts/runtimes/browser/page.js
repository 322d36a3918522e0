// Runs the export one folder up with transformers.js: the same calls as in Node, greedy, a new cache for every question.
//
// lib/ beside this file holds what npm installs with @huggingface/transformers: its dist/transformers.min.js, and
// ort-wasm-simd-threaded.asyncify.mjs and .wasm of onnxruntime-web/dist.

const at = (id) => document.getElementById(id);
const lib = new URL("lib/", import.meta.url).href;
let processor, model, RawImage, TextStreamer;

function state(words, wrong = false) {
  at("state").textContent = words;
  at("state").classList.toggle("wrong", wrong);
}

async function load() {
  let library;
  try {
    library = await import(`${lib}transformers.min.js`);
  } catch {
    throw new Error(`There is no transformers.js in ${lib}. The folder's README says what to copy there.`);
  }
  const { AutoModelForImageTextToText, AutoProcessor, env } = library;
  ({ RawImage, TextStreamer } = library);
  env.allowRemoteModels = false;
  env.allowLocalModels = true;
  env.useBrowserCache = false; // an export that was changed must not be answered by the former one
  env.useWasmCache = false;
  env.backends.onnx.wasm.wasmPaths = lib;
  const options = { local_files_only: true, device: "wasm" };
  processor = await AutoProcessor.from_pretrained("..", options);
  model = await AutoModelForImageTextToText.from_pretrained("..", options);
}

async function answer(prompt, file, most) {
  const content = [{ type: "text", text: prompt }];
  if (file) content.unshift({ type: "image" });
  const text = processor.apply_chat_template([{ role: "user", content }], { add_generation_prompt: true });
  const inputs = file
    ? await processor(await RawImage.fromBlob(file), text, { add_special_tokens: true })
    : processor.tokenizer(text, { add_special_tokens: true });
  const streamer = new TextStreamer(processor.tokenizer, {
    skip_prompt: true,
    skip_special_tokens: true,
    callback_function: (piece) => {
      at("answer").textContent += piece;
    },
  });
  const output = await model.generate({ ...inputs, max_new_tokens: most, do_sample: false, streamer });
  const length = inputs.input_ids.dims.at(-1);
  const ids = output.tolist()[0].map(Number);
  const said = { prompt_ids: ids.slice(0, length), token_ids: ids.slice(length) };
  at("answer").textContent = processor.tokenizer.decode(said.token_ids, { skip_special_tokens: true });
  at("ids").textContent = JSON.stringify(said);
  at("about").hidden = false;
}

at("form").onsubmit = async (event) => {
  event.preventDefault();
  at("ask").disabled = true;
  at("answer").textContent = "";
  at("about").hidden = true;
  state("It answers …");
  try {
    await answer(at("prompt").value, at("picture").files[0], Number(at("tokens").value));
    state("Ready.");
  } catch (error) {
    state(`It could not be answered: ${error.message ?? error}`, true);
  }
  at("ask").disabled = false;
};

try {
  await load();
  state("Ready.");
  at("ask").disabled = false;
} catch (error) {
  state(`The model could not be loaded: ${error.message ?? error}`, true);
}
