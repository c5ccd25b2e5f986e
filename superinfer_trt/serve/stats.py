"""The numbers of a service as messages of the wire. Pure reading; knows no call."""

from __future__ import annotations

import math

import superinfer_trt
from superinfer_trt.core.request import FinishReason
from superinfer_trt.core.units import MILLISECOND, SECOND
from superinfer_trt.serve.calls import Calls
from superinfer_trt.serve.mapping import Bounds
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.service import Service


def model_info(service: Service, bounds: Bounds, requests_max: int) -> pb.GetModelInfoResponse:
    """What is served, and the limits of a request."""
    model, limits = service.model, service.limits
    return pb.GetModelInfoResponse(
        engine=service.engine,
        policy=service.policy,
        model=model.name if model is not None else "",
        architecture=model.architecture if model is not None else "",
        vocabulary=bounds.vocabulary,
        context_tokens_max=bounds.context_tokens_max,
        request_tokens_max=bounds.request_tokens_max,
        has_tokenizer=service.tokenizer is not None,
        stop_token_ids=sorted(bounds.model_stop_ids),
        block_tokens=limits.block_tokens,
        device_blocks=limits.device_blocks,
        host_blocks=limits.host_blocks,
        seats=limits.seats,
        step_tokens=limits.step_tokens,
        default_slo=pb.Slo(
            ttft_ms=bounds.default_slo.ttft / MILLISECOND, tbt_ms=bounds.default_slo.tbt / MILLISECOND
        ),
        default_max_tokens=bounds.default_max_tokens,
        requests_max=requests_max,
        version=superinfer_trt.__version__,
    )


def stats(calls: Calls, *, uptime_s: float) -> pb.Stats:
    """One moment. The executor's numbers are read while it runs: each is right, not all of one turn."""
    executor, tally = calls.service.executor, calls.tally
    now, totals = executor.snapshot(), executor.totals
    finished = dict(totals.finished)
    (ttft_met, ttft_missed), (tbt_met, tbt_missed) = tally.met("ttft"), tally.met("tbt")
    joint_met, joint_missed = tally.met("joint_mean")
    return pb.Stats(
        serving=calls.serving,
        uptime_s=uptime_s,
        waiting=now.waiting,
        prefill=now.prefill,
        decode=now.decode,
        rotating_out=now.rotating_out,
        rotary=now.rotary,
        rotating_in=now.rotating_in,
        device_blocks_free=now.device_free,
        device_blocks=now.device_total,
        host_blocks_free=now.host_free,
        host_blocks=now.host_total,
        turns=totals.turns,
        batches=totals.batches,
        step_tokens=totals.step_tokens,
        output_tokens=totals.output_tokens,
        accepted=totals.accepted,
        finished_stop=finished.get(FinishReason.STOP, 0),
        finished_length=finished.get(FinishReason.LENGTH, 0),
        finished_cancelled=finished.get(FinishReason.CANCELLED, 0),
        finished_rejected=finished.get(FinishReason.REJECTED, 0),
        finished_failed=finished.get(FinishReason.FAILED, 0),
        refused=calls.refused,
        rotations_out=totals.rotations_out,
        rotations_in=totals.rotations_in,
        evictions=totals.evictions,
        copies_failed=totals.copies_failed,
        link_out_blocks=totals.link_out_blocks,
        link_in_blocks=totals.link_in_blocks,
        plan_s=totals.plan_ns / SECOND,
        apply_s=totals.apply_ns / SECOND,
        step_s=totals.step_ns / SECOND,
        streams=calls.live,
        messages=calls.messages,
        waiting_oldest_ms=now.waiting_age / MILLISECOND,
        rotary_oldest_ms=now.rotary_age / MILLISECOND,
        waiting_urgency=now.waiting_urgency,
        rotary_urgency=now.rotary_urgency,
        link_out_bytes=totals.link_out_blocks * now.block_bytes,
        link_in_bytes=totals.link_in_blocks * now.block_bytes,
        link_out_bytes_per_s=now.link_out_bytes_per_s if math.isfinite(now.link_out_bytes_per_s) else 0.0,
        link_in_bytes_per_s=now.link_in_bytes_per_s if math.isfinite(now.link_in_bytes_per_s) else 0.0,
        ttft_met=ttft_met,
        ttft_missed=ttft_missed,
        tbt_met=tbt_met,
        tbt_missed=tbt_missed,
        joint_met=joint_met,
        joint_missed=joint_missed,
    )
