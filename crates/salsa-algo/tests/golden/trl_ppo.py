#!/usr/bin/env python3
"""Pure-Python reference of TRL's PPO arithmetic, in TRL's own padded layout: trl_v2 and losses follow trl/experimental/ppo
(1.10.0 and 1.12.0), trl_v1 and adaptive_kl follow trl/trainer (0.11.4). Own code, nothing copied from TRL.
Prints the golden vectors as JSON: python3 trl_ppo.py > trl_ppo.json; trl_ppo.rs beside this file holds the same numbers."""
import json, math
INVALID = 1.0

def first_true(row):
    for i, b in enumerate(row):
        if b: return i
    return len(row)

def whiten(x, m, shift_mean=True, eps=1e-8):
    n = sum(sum(1 for b in r if b) for r in m)
    mean = sum(v for r, q in zip(x, m) for v, b in zip(r, q) if b) / n
    var = sum((v - mean) ** 2 for r, q in zip(x, m) for v, b in zip(r, q) if b) / n * (n / (n - 1))
    return [[(v - mean) / math.sqrt(var + eps) + (0 if shift_mean else mean) for v in r] for r in x]

def gae(rew, val, gamma, lam):
    adv = []
    for r, v in zip(rew, val):
        L = len(r); out = [0.0] * L; last = 0.0
        for t in reversed(range(L)):
            nxt = v[t + 1] if t < L - 1 else 0.0
            last = r[t] + gamma * nxt - v[t] + gamma * lam * last
            out[t] = last
        adv.append(out)
    return adv

def trl_v2(resp, pad, eos, stop, logp, ref, val, scores, kl_coef=0.05, kl_est="k1", gamma=1.0, lam=0.95,
           missing_eos_penalty=None, whiten_rewards=False):
    B, L = len(resp), len(resp[0])
    post = []
    for r in resp:
        k = first_true([t == stop for t in r]) if stop is not None else L
        post.append([t if i <= k else pad for i, t in enumerate(r)])
    seq = [first_true([t == pad for t in r]) - 1 for r in post]
    sc = [s - (missing_eos_penalty if missing_eos_penalty is not None and eos not in r else 0.0) for s, r in zip(scores, post)]
    m = [[i <= s for i in range(L)] for s in seq]            # policy mask (True = keep)
    m1 = [[i <= s + 1 for i in range(L)] for s in seq]       # value mask: one further position
    lp = [[v if k else INVALID for v, k in zip(r, q)] for r, q in zip(logp, m)]
    rf = [[v if k else INVALID for v, k in zip(r, q)] for r, q in zip(ref, m)]
    V = [[v if k else 0.0 for v, k in zip(r, q)] for r, q in zip(val, m1)]
    kl = []
    for a, b in zip(lp, rf):
        row = []
        for x, y in zip(a, b):
            lr = y - x
            row.append(-lr if kl_est == "k1" else math.exp(lr) - 1 - lr)
        kl.append(row)
    nsr = [[-kl_coef * k for k in r] for r in kl]
    rew = [list(r) for r in nsr]
    end = []
    for b in range(B):
        e = seq[b] + 1 if seq[b] + 1 < L else seq[b]
        rew[b][e] += sc[b]; end.append(e)
    if whiten_rewards:
        rew = whiten(rew, m1, shift_mean=False)
        rew = [[v if k else 0.0 for v, k in zip(r, q)] for r, q in zip(rew, m1)]
    adv = gae(rew, V, gamma, lam)
    ret = [[a + v for a, v in zip(x, y)] for x, y in zip(adv, V)]
    A = whiten(adv, m)
    A = [[v if k else 0.0 for v, k in zip(r, q)] for r, q in zip(A, m)]
    return dict(postprocessed=post, sequence_length=seq, score_index=end, scores_after_penalty=sc, kl=kl, rewards=rew,
                values=V, raw_advantages=adv, returns=ret, advantages=A, mask=m, mask_p1=m1, logprobs=lp, ref_logprobs=rf,
                objective_kl=sum(map(sum, kl)) / B, non_score_reward=sum(map(sum, nsr)) / B,
                rlhf_reward=sum(map(sum, nsr)) / B + sum(sc) / B,
                entropy_july2026=sum(-v for r in lp for v in r) / B,
                entropy_masked=sum(-v for r, q in zip(lp, m) for v, k in zip(r, q) if k) / B)

def losses(new_logp, new_val, d, cliprange=0.2, cliprange_value=0.2, vf_coef=0.1):
    m, m1 = d["mask"], d["mask_p1"]
    n = sum(map(sum, m)); n1 = sum(map(sum, m1)); tot = len(m) * len(m[0])
    pg = vf = pc = vc = akl = rat = 0.0
    for b in range(len(m)):
        for t in range(len(m[0])):
            nl = new_logp[b][t] if m[b][t] else INVALID
            vp = new_val[b][t] if m1[b][t] else 0.0
            ov, rt = d["values"][b][t], d["returns"][b][t]
            vcl = min(max(vp, ov - cliprange_value), ov + cliprange_value)
            l1, l2 = (vp - rt) ** 2, (vcl - rt) ** 2
            if m1[b][t]: vf += max(l1, l2); vc += l2 > l1
            diff = nl - d["logprobs"][b][t]; r = math.exp(diff); a = d["advantages"][b][t]
            p1, p2 = -a * r, -a * min(max(r, 1 - cliprange), 1 + cliprange)
            if m[b][t]: pg += max(p1, p2); pc += p2 > p1
            akl += 0.5 * diff * diff; rat += r
    pg /= n; vf = 0.5 * vf / n1
    return dict(pg_loss=pg, vf_loss=vf, loss=pg + vf_coef * vf, pg_clipfrac=pc / n, vf_clipfrac=vc / n1,
                approxkl_unmasked=akl / tot, ratio_unmasked=rat / tot)

def trl_v1(mask, logp, ref, val, scores, kl_coef, gamma=1.0, lam=0.95, penalty="kl"):
    f = dict(kl=lambda d: d, abs=abs, mse=lambda d: 0.5 * d * d)[penalty]
    kl = [[f(x - y) for x, y in zip(a, b)] for a, b in zip(logp, ref)]
    rew = [[-kl_coef * k for k in r] for r in kl]
    for b, m in enumerate(mask):
        rew[b][max(i for i, k in enumerate(m) if k)] += scores[b]
    V = [[v * k for v, k in zip(r, m)] for r, m in zip(val, mask)]
    R = [[v * k for v, k in zip(r, m)] for r, m in zip(rew, mask)]
    adv = gae(R, V, gamma, lam)
    ret = [[a + v for a, v in zip(x, y)] for x, y in zip(adv, V)]
    return dict(rewards=rew, raw_advantages=adv, returns=ret, advantages=whiten(adv, mask),
                objective_kl=sum(k * q for r, m in zip(kl, mask) for k, q in zip(r, m)) / len(mask))

def adaptive_kl(coef, current, n_steps, target=6.0, horizon=10000):
    e = min(max(current / target - 1, -0.2), 0.2)
    return coef * (1 + e * n_steps / horizon)

if __name__ == "__main__":
    PAD, EOS = 0, 2
    # row 0: EOS at index 2 then garbage after EOS; row 1: fills the whole length, no EOS
    resp = [[11, 12, EOS, 9, 9, 9], [21, 22, 23, 24, 25, 26]]
    logp = [[-1.0, -0.5, -0.25, -3.0, -3.0, -3.0], [-0.9, -0.8, -0.7, -0.6, -0.5, -0.4]]
    ref = [[-1.2, -0.4, -0.35, -2.0, -2.0, -2.0], [-1.0, -1.0, -0.6, -0.9, -0.5, -0.1]]
    val = [[0.1, 0.2, 0.3, 0.4, 7.0, 7.0], [0.0, 0.1, -0.1, 0.2, 0.3, -0.2]]
    scores = [1.5, 0.5]
    out = {}
    for name, kw in dict(k1={}, k3=dict(kl_est="k3"), k1_penalty=dict(missing_eos_penalty=1.0),
                         k1_whiten=dict(whiten_rewards=True)).items():
        out["trl2_" + name] = trl_v2(resp, PAD, EOS, EOS, logp, ref, val, scores, **kw)
    nl = [[-0.9, -0.6, -0.2, -1.0, -1.0, -1.0], [-0.6, -1.1, -0.7, -0.3, -0.55, -0.4]]
    nv = [[0.15, 0.5, 0.2, 0.45, 1.0, 1.0], [0.1, 0.1, 0.0, -0.1, 0.4, 0.0]]
    out["loss_k1_penalty"] = losses(nl, nv, out["trl2_k1_penalty"])
    mask = [[1, 1, 1, 0, 0, 0], [1] * 6]
    out["trl1_kl"] = trl_v1(mask, logp, ref, val, scores, 0.2)
    out["adaptive_kl"] = [adaptive_kl(0.2, 9.0, 128), adaptive_kl(0.2, 6.6, 128), adaptive_kl(0.2, 1.0, 128)]
    def rnd(o):
        if isinstance(o, bool): return o
        if isinstance(o, float): return round(o, 9)
        if isinstance(o, dict): return {k: rnd(v) for k, v in o.items()}
        if isinstance(o, list): return [rnd(v) for v in o]
        return o
    print(json.dumps(rnd(out), indent=1))
