// Answers requests with an export of the layout transformers.js, as a user of that package would.
//
//   node generate.mjs JOB.json RESULT.json
//
// The job: {"folder", "max_new_tokens", "requests": [{"prompt", "image"}]}; images are paths or null. The result: per
// request the ids of prompt and answer, the answer's text, and the first pixel values; or {"error"}.

import { readFile, writeFile } from "node:fs/promises";
import { dirname, basename } from "node:path";
import { AutoModelForImageTextToText, AutoProcessor, RawImage, env } from "@huggingface/transformers";

const [jobPath, resultPath] = process.argv.slice(2);
const job = JSON.parse(await readFile(jobPath, "utf-8"));

env.allowRemoteModels = false;
env.localModelPath = dirname(job.folder);
const name = basename(job.folder);
const options = { local_files_only: true, session_options: { intraOpNumThreads: 1, interOpNumThreads: 1 } };

async function answer(processor, model, { prompt, image }) {
    const content = [{ type: "text", text: prompt }];
    if (image) content.unshift({ type: "image" });
    const text = processor.apply_chat_template([{ role: "user", content }], { add_generation_prompt: true });
    const picture = image ? await RawImage.read(image) : null;
    const inputs = picture
        ? await processor(picture, text, { add_special_tokens: true })
        : processor.tokenizer(text, { add_special_tokens: true });
    const output = await model.generate({ ...inputs, max_new_tokens: job.max_new_tokens, do_sample: false });
    const length = inputs.input_ids.dims.at(-1);
    const ids = output.tolist()[0].map(Number);
    return {
        prompt_ids: ids.slice(0, length),
        token_ids: ids.slice(length),
        text: processor.tokenizer.decode(ids.slice(length), { skip_special_tokens: true }),
        pixels: picture ? Array.from(inputs.pixel_values.data.slice(0, 32)) : null,
    };
}

let result;
try {
    const processor = await AutoProcessor.from_pretrained(name, options);
    const model = await AutoModelForImageTextToText.from_pretrained(name, options);
    result = { answers: [] };
    for (const request of job.requests) result.answers.push(await answer(processor, model, request));
    await model.dispose();
} catch (error) {
    result = { error: String(error?.message ?? error) };
}
await writeFile(resultPath, JSON.stringify(result));
