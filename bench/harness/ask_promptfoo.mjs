// promptfoo: its OpenAI provider on every record, each answer compared by its assertion `equals`.
//
//   node ask_promptfoo.mjs JOB.json RESULT.json   (in a folder in which promptfoo is installed)

import { spawnSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";

const job = JSON.parse(readFileSync(process.argv[2], "utf-8"));
const work = dirname(resolve(process.argv[3]));
const report = join(work, "report.json");

const parts = (record) => [
    ...(record.image ? [{ type: "image_url", image_url: { url: record.image } }] : []),
    { type: "text", text: record.prompt },
];
const config = {
    prompts: ["{{messages}}"],
    providers: [{
        id: `openai:chat:${job.model}`,
        config: { apiBaseUrl: job.url, apiKey: job.key, temperature: 0, max_tokens: job.max_tokens },
    }],
    tests: job.records.map((record) => ({
        vars: { messages: JSON.stringify([{ role: "user", content: parts(record) }]) },
        assert: [{ type: "equals", value: record.expected }],
        metadata: { id: record.id },
    })),
};
writeFileSync(join(work, "promptfooconfig.json"), JSON.stringify(config));
const offline = {
    PROMPTFOO_DISABLE_TELEMETRY: "1", PROMPTFOO_DISABLE_UPDATE: "1", PROMPTFOO_DISABLE_REMOTE_GENERATION: "1",
    PROMPTFOO_DISABLE_SHARING: "1", PROMPTFOO_CONFIG_DIR: join(work, "home"), PROMPTFOO_FAILED_TEST_EXIT_CODE: "0",
    PROMPTFOO_DISABLE_TEMPLATING: "0", PROMPTFOO_SELF_HOSTED: "1",
};
const words = ["eval", "--no-cache", "--no-table", "--no-progress-bar", "-j", "8"];
const run = spawnSync(
    process.execPath,
    [resolve("node_modules/promptfoo/dist/src/main.js"), ...words, "-c", join(work, "promptfooconfig.json"), "-o", report],
    { env: { ...process.env, ...offline }, encoding: "utf-8" },
);
writeFileSync(join(work, "promptfoo.log"), run.stdout + run.stderr);
const found = JSON.parse(readFileSync(report, "utf-8")).results;
const answers = {};
for (const one of found.results) {
    const reason = one.response?.finishReason ?? one.response?.raw?.choices?.[0]?.finish_reason;
    const refused = reason === "content_filter" || Boolean(one.response?.guardrails?.flagged);
    answers[one.testCase.metadata.id] = { text: one.response?.output ?? String(one.error), refused };
}
const { successes, failures, errors } = found.stats;
const { version } = JSON.parse(readFileSync("node_modules/promptfoo/package.json", "utf-8"));
writeFileSync(process.argv[3], JSON.stringify({
    version, answers, report: `${successes} passed, ${failures} failed, ${errors} errors`,
}));
