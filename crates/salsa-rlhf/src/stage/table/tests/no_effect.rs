//! Which keys change a result and which do not: a decision for every key of every stage.
use std::collections::BTreeSet;

use serde_json::Value;

use crate::{config::paths::CHANGES_NO_RESULT, stage::table::STAGES};

/// Keys on which the result of some stage depends.
///
/// A new key belongs here, or its type is [`crate::config::paths::NoEffect`] if the results of a stage (models, answers
/// and `stage.json`, not logs) are the same bytes for all its values. `max_shard_size`, `digests` and a soup's `report`
/// are here, since they determine which files a stage writes; `per_device_eval_batch_size`, since means are rounded
/// batch by batch.
const CHANGES_RESULTS: &str = "\
    adam_beta1 adam_beta2 adam_epsilon adapters alphabets alphas anchors answer_temperature answers arms base_model \
    baseline batch_size beta budget cache center_rewards_coefficient chat_template chat_template_kwargs cliprange \
    cliprange_value column combine command comparisons completion_only_loss control_features cpo_alpha critic \
    critic_learning_rate critic_warmup dataset datasets decay delta densities density desirable_weight deviations \
    device df_gamed digests discopop_tau divisions dtype end epsilon epsilon_high eval_dataset every fallback files \
    filter filter_wise format gamma gold gradient_accumulation_steps gradient_units greedy head_dim hidden_size highest \
    importance_sampling_level input instruction_difficulty intermediate_size judge judge_model judge_path \
    judge_settings judgments kind kl_coef kl_estimator kl_horizon kl_in kl_target label_smoothing labels lam \
    landscape learning_rate limit lora_alpha lora_dropout lora_r lora_target_modules loss_type lowest lr_scheduler_type \
    margin mask_truncated_completions match max_examples max_grad_norm max_iter max_length max_new_tokens max_penalty \
    max_position_embeddings max_prompt_length max_prompts max_samples max_sampling_rounds max_shard_size max_steps \
    max_tokens method missing_eos_penalty mixup model model_name_or_path models name ngram_size normalize \
    normalize_scores num_attention_heads num_generations num_hidden_layers num_iterations num_key_value_heads \
    num_mini_batches num_ppo_epochs num_return_sequences num_train_epochs nuslerp_flatten nuslerp_row_wise \
    on_overlong packing pairing path pattern per_device_eval_batch_size per_device_train_batch_size place preferences \
    pretrain prompts prompts_ood prompts_test prompts_train prompts_validation protocol questions \
    ref_model_name_or_path reference reference_answers report resamples response_length reward_model_path rewards \
    rms_norm_eps rope_theta save_dtype scale scale_rewards schema score_clip score_position search seed sft simpo_gamma \
    split start steps style_control style_scale svd_rank system_prompt t tags target temperature template templates text_prompts \
    tie_margin ties tie_word_embeddings tokenizer_name_or_path tokenizer_source tol top_k top_p total_episodes transport \
    truncation_mode undesirable_weight url use_peft use_rslora value vf_coef vocab_size warmup_ratio warmup_steps \
    weight weight_decay weights whiten_rewards world";

/// `KIND.KEY`, or `KIND.KEY.KEY` for nested keys, of all keys that affect no result.
const CHANGES_NONE: &[&str] = &[
    "cpo.eval_steps",
    "cpo.gradient_checkpointing",
    "cpo.logging_steps",
    "cpo.save_steps",
    "dpo.eval_steps",
    "dpo.gradient_checkpointing",
    "dpo.logging_steps",
    "dpo.save_steps",
    "evaluate.RewardSource.api_key_env",
    "evaluate.RewardSource.api_key_file",
    "evaluate.RewardSource.base_url",
    "evaluate.RewardSource.batch_size",
    "evaluate.RewardSource.concurrency",
    "evaluate.RewardSource.max_retries",
    "evaluate.RewardSource.timeout",
    "evaluate.decode_slots",
    "evaluate.description",
    "evaluate.runs",
    "evaluate.samples",
    "evaluate.title",
    "generate.batch_size",
    "grpo.RewardSource.api_key_env",
    "grpo.RewardSource.api_key_file",
    "grpo.RewardSource.base_url",
    "grpo.RewardSource.batch_size",
    "grpo.RewardSource.concurrency",
    "grpo.RewardSource.max_retries",
    "grpo.RewardSource.timeout",
    "grpo.decode_slots",
    "grpo.gradient_checkpointing",
    "grpo.num_sample_generations",
    "grpo.save_steps",
    "judge.api_key_env",
    "judge.api_key_file",
    "judge.base_url",
    "judge.batch_size",
    "judge.concurrency",
    "judge.dry_run",
    "judge.max_failures",
    "judge.max_retries",
    "judge.timeout",
    "kto.eval_steps",
    "kto.gradient_checkpointing",
    "kto.logging_steps",
    "kto.save_steps",
    "landscape.RewardSource.api_key_env",
    "landscape.RewardSource.api_key_file",
    "landscape.RewardSource.base_url",
    "landscape.RewardSource.batch_size",
    "landscape.RewardSource.concurrency",
    "landscape.RewardSource.max_retries",
    "landscape.RewardSource.timeout",
    "landscape.decode_slots",
    "logprobs.max_tokens_per_batch",
    "online_dpo.RewardSource.api_key_env",
    "online_dpo.RewardSource.api_key_file",
    "online_dpo.RewardSource.base_url",
    "online_dpo.RewardSource.batch_size",
    "online_dpo.RewardSource.concurrency",
    "online_dpo.RewardSource.max_retries",
    "online_dpo.RewardSource.timeout",
    "online_dpo.decode_slots",
    "online_dpo.gradient_checkpointing",
    "online_dpo.num_sample_generations",
    "online_dpo.save_steps",
    "orpo.eval_steps",
    "orpo.gradient_checkpointing",
    "orpo.logging_steps",
    "orpo.save_steps",
    "ppo.RewardSource.api_key_env",
    "ppo.RewardSource.api_key_file",
    "ppo.RewardSource.base_url",
    "ppo.RewardSource.batch_size",
    "ppo.RewardSource.concurrency",
    "ppo.RewardSource.max_retries",
    "ppo.RewardSource.timeout",
    "ppo.decode_slots",
    "ppo.gradient_checkpointing",
    "ppo.num_sample_generations",
    "ppo.save_steps",
    "pretrain.eval_steps",
    "pretrain.gradient_checkpointing",
    "pretrain.logging_steps",
    "pretrain.save_steps",
    "reward.eval_steps",
    "reward.gradient_checkpointing",
    "reward.logging_steps",
    "reward.save_steps",
    "score.max_tokens_per_batch",
    "sft.eval_steps",
    "sft.gradient_checkpointing",
    "sft.logging_steps",
    "sft.save_steps",
    "soup.MeasureConfig.decode_slots",
    "soup.SearchConfig.decode_slots",
    "winrate.max_tokens_per_batch",
];

/// Collects every key of a schema with its place and its own schema.
fn keys<'a>(place: &str, schema: &'a Value, found: &mut Vec<(String, &'a Value)>) {
    for (key, property) in schema["properties"].as_object().into_iter().flatten() {
        if !property["description"].as_str().is_some_and(|said| said.starts_with("Another name of")) {
            found.push((format!("{place}.{key}"), property));
        }
    }
    for form in ["oneOf", "anyOf"].iter().filter_map(|forms| schema[forms].as_array()).flatten() {
        keys(place, form, found);
    }
    for (name, definition) in schema["definitions"].as_object().into_iter().flatten() {
        keys(&format!("{place}.{name}"), definition, found);
    }
}

#[test]
fn of_every_key_it_is_decided_whether_it_changes_a_result() {
    let (mut none, mut undecided) = (BTreeSet::new(), BTreeSet::new());
    for kind in STAGES.iter().filter(|kind| kind.name != "census") {
        let schema = (kind.schema)();
        let mut found = Vec::new();
        keys(kind.name, &schema, &mut found);
        for (place, property) in found {
            let key = place.rsplit('.').next().unwrap();
            if property[CHANGES_NO_RESULT] == true {
                none.insert(place);
            } else if kind.product.key() != Some(key) && !CHANGES_RESULTS.split(' ').any(|known| known == key) {
                undecided.insert(place);
            }
        }
    }
    assert!(undecided.is_empty(), "make it NoEffect or add it to CHANGES_RESULTS: {undecided:?}");
    assert_eq!(none.iter().map(String::as_str).collect::<Vec<_>>(), CHANGES_NONE);
}
