#!/usr/bin/env bash
# Every agent and policy class of the paper, on two tasks, 1M env steps, two seeds.
# Run from the project's root; given again, it goes on where it stopped.
set -euo pipefail
out=launch/results/agents

curves() { # ALGORITHM [POLICY]
    python launch/learning_curves.py --envs halfcheetah,hopper --algos "$1" \
        --seeds 0,1 --parallel 2 --out $out --runs checkpoints/agents \
        --name "${2:-1M}" --settings "--num_timesteps 1000000 ${2:+--policy $2}"
}

curves iq
curves m_iq
curves pcl
curves trust_pcl
curves sac
curves iq gaussian
curves iq autoregressive
curves iq flow

python launch/learning_curves.py --envs halfcheetah,hopper --algos random --out $out
python -m iqmjx.report --curves $out --out $out/report
