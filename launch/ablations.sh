#!/usr/bin/env bash
# The recipe minus each of its ingredients, on two tasks, 600k env steps.
# Run from the project's root; given again, it goes on where it stopped.
set -euo pipefail
out=launch/results/ablations

without() { # NAME FLAGS [ALGORITHM [SEEDS]]
    python launch/learning_curves.py --envs halfcheetah,hopper --algos "${3:-iq}" \
        --seeds "${4:-0}" --parallel 2 --out $out --runs checkpoints/ablations \
        --name "$1" --settings "--num_timesteps 600000 --num_checkpoints 1 $2"
}

without nothing "" iq 0,1
without layer-norm --nolayer_norm
without scaled-softmax "--softmax raw"
without normalization --nonormalize_observations
without exploration "--exploration_steps 0"
without zero-last-layer --nozero_last_layer iq 0,1
without nothing "" m_iq # with Munchausen
without value-scale "--value_scale 1 --advantage_scale 0.1"
without adaptive-temperature "--target_entropy 0 --temperature 0.01"
without short-replay "--max_replay_size 1048576"
without both-scales "--value_scale 1 --advantage_scale 5" # about the paper's
without falling-learning-rate --noanneal_learning_rate
without average-policy "--average_rate 1"

python launch/learning_curves.py --envs halfcheetah,hopper --algos random --out $out
python -m iqmjx.report --curves $out --out $out/report
