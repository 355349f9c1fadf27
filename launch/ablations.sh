#!/usr/bin/env bash
# The recipe minus each of its ingredients, on two tasks, 1M env steps, seed 0.
# Run from the project's root; given again, it goes on where it stopped.
set -euo pipefail
out=launch/results/ablations

without() { # NAME FLAGS [ALGORITHM]
    python launch/learning_curves.py --envs halfcheetah,hopper --algos "${3:-iq}" \
        --seeds 0 --parallel 2 --out $out --runs checkpoints/ablations \
        --name "$1" --settings "--num_timesteps 1000000 $2"
}

without nothing ""
without scaled-softmax --noscaled_softmax
without layer-norm --nolayer_norm
without normalization --nonormalize_observations
without zero-last-layer --nozero_last_layer
without exploration "--exploration_steps 0"
without falling-learning-rate --noanneal_learning_rate
without short-replay "--max_replay_size 1048576"
without value-scale "--value_scale 1 --advantage_scale 0.1"
without both-scales "--value_scale 1 --advantage_scale 5" # about the paper's
without adaptive-temperature "--target_entropy 0 --temperature 0.01"
without average-policy "--average_rate 1"
without nothing "" m_iq # with Munchausen

python launch/learning_curves.py --envs halfcheetah,hopper --algos random --out $out
python -m iqmjx.report --curves $out --out $out/report
