// An open loop of k6 on superinfer.v1.ExecutorService, from the .proto alone: no code of this project.
//
//   k6 run --no-usage-report -e TARGET=127.0.0.1:50051 -e RPS=20 -e DURATION_S=10 tests/clients/generate.js
//
// k6's clock has a resolution of a millisecond.
import { check } from 'k6';
import exec from 'k6/execution';
import { Counter, Rate, Trend } from 'k6/metrics';
import { Client, Stream } from 'k6/net/grpc';

const number = (name, otherwise) => Number(__ENV[name] || otherwise);
const REQUESTS_AT_ONCE = number('VUS', 32);
const PROMPT_TOKENS = number('PROMPT_TOKENS', 8);
const OUTPUT_TOKENS = number('OUTPUT_TOKENS', 16);
const TTFT_SLO_MS = number('TTFT_SLO_MS', 5000);
const TBT_SLO_MS = number('TBT_SLO_MS', 100);

const ttft = new Trend('ttft_ms');
const itl = new Trend('itl_ms');
const sloMet = new Rate('slo_met');
const tokens = new Counter('tokens');
const ended = new Counter('ended');
const wrong = new Counter('wrong');

export const options = {
  scenarios: {
    load: {
      executor: 'constant-arrival-rate',
      rate: number('RPS', 10),
      timeUnit: '1s',
      duration: `${number('DURATION_S', 5)}s`,
      preAllocatedVUs: REQUESTS_AT_ONCE,
      gracefulStop: '30s',
    },
  },
  thresholds: {
    wrong: ['count==0'],
    dropped_iterations: ['count==0'],
    slo_met: [`rate>=${__ENV.SLO_SHARE || 0}`],
  },
  summaryTrendStats: ['min', 'med', 'p(90)', 'p(99)', 'max', 'count'],
};

const client = new Client();
client.load(['../../proto'], 'superinfer/v1/executor.proto');

function judge(said) {
  const gaps = said.times.slice(1).map((time, at) => time - said.times[at]);
  gaps.forEach((gap) => itl.add(gap));
  const first = said.times[0] - said.sent;
  ttft.add(first);
  const mean = gaps.length ? gaps.reduce((sum, gap) => sum + gap, 0) / gaps.length : 0;
  sloMet.add(first <= TTFT_SLO_MS && mean <= TBT_SLO_MS);
  const right = check(said, {
    'every token came, once and in order': (one) => one.inOrder && one.times.length === OUTPUT_TOKENS,
    'the ending tells as many': (one) => Number(one.ending.usage.outputTokens) === OUTPUT_TOKENS,
    'it ended by its length': (one) => one.ending.finishReason === 'FINISH_REASON_LENGTH',
  });
  ended.add(1);
  wrong.add(right ? 0 : 1);
}

export default function () {
  if (exec.vu.iterationInInstance === 0) {
    client.connect(__ENV.TARGET, { plaintext: true });
  }
  const said = { sent: Date.now(), times: [], inOrder: true, ending: null };
  const stream = new Stream(client, 'superinfer.v1.ExecutorService/Generate');
  stream.on('data', (message) => {
    const now = Date.now();
    const delta = message.delta;
    if (delta && delta.tokenIds && delta.tokenIds.length) {
      said.inOrder = said.inOrder && (delta.firstIndex || 0) === said.times.length;
      delta.tokenIds.forEach(() => said.times.push(now));
      tokens.add(delta.tokenIds.length);
    }
    said.ending = message.ending || said.ending;
  });
  stream.on('error', (error) => {
    console.error(`status ${error.code}: ${error.message}`); // `end` comes behind it
  });
  stream.on('end', () => {
    if (said.ending) {
      judge(said);
    } else {
      wrong.add(1);
    }
  });
  stream.write({
    tokenIds: { ids: Array.from({ length: PROMPT_TOKENS }, (_, at) => at + 1) },
    sampling: { maxTokens: OUTPUT_TOKENS, ignoreEos: true },
    slo: { ttftMs: TTFT_SLO_MS, tbtMs: TBT_SLO_MS },
    tenant: 'k6',
  });
  stream.end();
}

export function handleSummary(data) {
  const values = Object.fromEntries(Object.entries(data.metrics).map(([name, one]) => [name, one.values]));
  return { stdout: `${JSON.stringify(values)}\n` };
}
