//! Every key of another tool is either accepted or answered with a remedy.
use serde_json::{Map, Value};

use crate::{config::names::resolve, stage::table::find};

/// Fields of `TrainingArguments` of transformers 5.23, shared by all configurations of TRL.
const TRAINING: &str = "accelerator_config activation_checkpointing activation_checkpointing_kwargs adam_beta1 adam_beta2 adam_epsilon \
     auto_find_batch_size average_tokens_across_devices batch_eval_metrics bf16 bf16_full_eval data_seed \
     dataloader_drop_last dataloader_in_order dataloader_multiprocessing_context dataloader_num_workers \
     dataloader_persistent_workers dataloader_pin_memory dataloader_prefetch_factor ddp_backend \
     ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph ddp_timeout debug \
     deepspeed disable_tqdm do_eval do_predict do_train enable_jit_checkpoint eval_accumulation_steps eval_delay \
     eval_do_concat_batches eval_on_start eval_steps eval_strategy eval_use_gather_object fp16 fp16_full_eval fsdp \
     fsdp_config full_determinism gradient_accumulation_steps gradient_checkpointing gradient_checkpointing_kwargs \
     greater_is_better hub_always_push hub_model_id hub_private_repo hub_revision hub_strategy hub_token \
     ignore_data_skip include_for_metrics include_num_input_tokens_seen label_names label_smoothing_factor \
     learning_rate length_column_name liger_kernel_config load_best_model_at_end local_rank log_level \
     log_level_replica log_on_each_node logging_first_step logging_nan_inf_filter logging_steps logging_strategy \
     lr_scheduler_kwargs lr_scheduler_type max_grad_norm max_steps metric_for_best_model neftune_noise_alpha \
     num_train_epochs optim optim_args optim_target_modules output_dir parallelism_config \
     per_device_eval_batch_size per_device_train_batch_size prediction_loss_only project push_to_hub \
     remove_unused_columns report_to restore_callback_states_from_checkpoint resume_from_checkpoint run_name \
     save_on_each_node save_only_model save_steps save_strategy save_total_limit seed skip_memory_metrics tf32 \
     torch_compile torch_compile_backend torch_compile_mode torch_empty_cache_steps trackio_bucket_id \
     trackio_space_id trackio_static_space_id train_sampling_strategy use_cache use_cpu use_liger_kernel \
     warmup_steps weight_decay";

/// Further fields of TRL 1.12's configurations, and of its `ModelConfig` and `ScriptArguments`.
const SFT: &str = "model_init_kwargs router_aux_loss_coef trust_remote_code chat_template_path dataset_text_field dataset_kwargs \
     dataset_num_proc eos_token max_length truncation_mode shuffle_dataset packing packing_strategy padding_free \
     pad_to_multiple_of eval_packing completion_only_loss assistant_only_loss loss_type activation_offloading \
     pad_token";
const REWARD: &str = "model_init_kwargs trust_remote_code chat_template_path disable_dropout dataset_num_proc eos_token max_length \
     pad_to_multiple_of center_rewards_coefficient activation_offloading pad_token";
const DPO: &str = "model_init_kwargs trust_remote_code router_aux_loss_coef disable_dropout dataset_num_proc max_length \
     truncation_mode padding_free pad_to_multiple_of precompute_ref_log_probs precompute_ref_batch_size loss_type \
     loss_weights ld_alpha f_divergence_type f_alpha_divergence_coef label_smoothing beta use_weighting \
     discopop_tau activation_offloading sync_ref_model ref_model_mixup_alpha ref_model_sync_steps pad_token";
/// Of TRL 1.16.
const KTO: &str = "model_init_kwargs trust_remote_code router_aux_loss_coef disable_dropout dataset_num_proc max_length \
     pad_to_multiple_of precompute_ref_log_probs precompute_ref_batch_size loss_type beta desirable_weight \
     undesirable_weight activation_offloading sync_ref_model ref_model_mixup_alpha ref_model_sync_steps";
const ORPO: &str = "max_length max_completion_length beta disable_dropout padding_value generate_during_eval \
     is_encoder_decoder model_init_kwargs trust_remote_code dataset_num_proc";
const CPO: &str = "max_length max_completion_length beta label_smoothing loss_type disable_dropout cpo_alpha simpo_gamma \
     alpha padding_value generate_during_eval is_encoder_decoder model_init_kwargs trust_remote_code dataset_num_proc";
const PPO: &str = "dataset_num_proc num_mini_batches total_episodes local_rollout_forward_batch_size num_sample_generations \
     response_length stop_token stop_token_id temperature missing_eos_penalty sft_model_path world_size \
     num_total_batches micro_batch_size local_batch_size batch_size local_mini_batch_size mini_batch_size \
     reward_model_path model_adapter_name ref_adapter_name num_ppo_epochs whiten_rewards kl_coef kl_estimator \
     cliprange vf_coef cliprange_value gamma lam ds3_gather_for_generation";
const GRPO: &str = "beta cache_implementation cast_lm_head_to_fp32 chat_template_kwargs delta disable_dropout entropy_coef \
     ds3_gather_for_generation entropy_coef_delta entropy_coef_max entropy_coef_min entropy_target epsilon epsilon_high \
     generation_batch_size generation_kwargs importance_sampling_level log_completions log_completions_hub_repo \
     log_multimodal log_unique_prompts loss_type mask_truncated_completions max_completion_length min_p \
     max_tool_calling_iterations model_init_kwargs multi_objective_aggregation num_completions_to_print num_generations \
     num_generations_eval num_iterations off_policy_mask_threshold pad_to_multiple_of ref_model_mixup_alpha \
     ref_model_sync_steps repetition_penalty reward_weights router_aux_loss_coef sapo_temperature_neg \
     sapo_temperature_pos scale_rewards shuffle_dataset steps_per_generation sync_ref_model temperature \
     top_entropy_quantile top_k top_p transformers_continuous_batching_config trust_remote_code \
     use_adaptive_entropy use_bias_correction_kl use_transformers_continuous_batching use_transformers_paged use_vllm \
     vespo_k_neg vespo_k_pos vespo_lambda_neg vespo_lambda_pos vllm_enable_sleep_mode vllm_gpu_memory_utilization \
     vllm_group_port vllm_importance_sampling_cap vllm_importance_sampling_correction vllm_importance_sampling_mode \
     vllm_max_model_length vllm_mode vllm_model_impl vllm_server_base_url vllm_server_host vllm_server_port \
     vllm_server_timeout vllm_structured_outputs_regex vllm_tensor_parallel_size";
/// Of TRL 1.16.
const ONLINE_DPO: &str = "reward_model_path max_new_tokens max_length temperature top_p top_k min_p repetition_penalty \
     generation_kwargs cache_implementation missing_eos_penalty beta loss_type disable_dropout use_vllm vllm_model_impl \
     vllm_structured_outputs_regex vllm_gpu_memory_utilization vllm_mode vllm_server_base_url vllm_server_host \
     vllm_server_port vllm_server_timeout vllm_group_port vllm_tensor_parallel_size vllm_enable_sleep_mode \
     ds3_gather_for_generation model_init_kwargs trust_remote_code reward_weights";
const MODEL: &str = "model_name_or_path model_revision dtype attn_implementation use_peft lora_r lora_alpha lora_dropout \
     lora_target_modules lora_target_parameters lora_modules_to_save lora_task_type use_rslora use_dora \
     load_in_8bit load_in_4bit bnb_4bit_quant_type use_bnb_nested_quant bnb_4bit_quant_storage dataset_name \
     dataset_config dataset_train_split dataset_test_split dataset_streaming ignore_bias_buffers";

/// Common keys of recipes of axolotl, LLaMA-Factory and OpenRLHF for the same stages.
const AXOLOTL: &str = "base_model model_type tokenizer_type load_in_8bit load_in_4bit datasets dataset_prepared_path \
     val_set_size output_dir sequence_len sample_packing pad_to_sequence_len adapter lora_r lora_alpha lora_dropout \
     lora_target_modules lora_target_linear lora_model_dir wandb_project wandb_entity gradient_accumulation_steps \
     micro_batch_size num_epochs optimizer lr_scheduler learning_rate train_on_inputs group_by_length bf16 fp16 tf32 \
     gradient_checkpointing resume_from_checkpoint logging_steps flash_attention warmup_steps evals_per_epoch \
     saves_per_epoch weight_decay special_tokens deepspeed fsdp chat_template";
const LLAMA_FACTORY: &str = "model_name_or_path trust_remote_code stage do_train finetuning_type lora_rank lora_target \
     dataset template cutoff_len max_samples overwrite_cache preprocessing_num_workers output_dir logging_steps save_steps \
     plot_loss overwrite_output_dir per_device_train_batch_size gradient_accumulation_steps learning_rate num_train_epochs \
     lr_scheduler_type warmup_ratio bf16 ddp_timeout val_size per_device_eval_batch_size eval_strategy eval_steps \
     adapter_name_or_path quantization_bit";
const OPEN_RLHF: &str = "pretrain reward_pretrain save_path micro_train_batch_size micro_rollout_batch_size \
     rollout_batch_size max_epochs prompt_max_len generate_max_len zero_stage bf16 actor_learning_rate \
     critic_learning_rate init_kl_coef input_key apply_chat_template normalize_reward packing_samples adam_offload \
     flash_attn gradient_checkpointing use_wandb n_samples_per_prompt advantage_estimator lambd gamma eps_clip value_clip \
     vllm_num_engines vllm_tensor_parallel_size colocate_all_models max_norm save_steps logging_steps eval_steps ckpt_path";

fn keys(stage: &str) -> Map<String, Value> {
    (find(stage).unwrap().defaults)()
}

/// The keys that `stage` neither accepts nor answers with a remedy.
fn unanswered(stage: &str, names: &str) -> Vec<String> {
    let keys = keys(stage);
    let is_open = |name: &&str| matches!(resolve(name, &keys), Err(hint) if !hint.contains("leave it out") && !hint.contains("say ") && !hint.starts_with("not supported"));
    names
        .split_whitespace()
        .filter(is_open)
        .map(|name| format!("{stage}: {name}: {}", resolve(name, &keys).unwrap_err()))
        .collect()
}

#[test]
fn every_key_of_trl_is_taken_or_answered() {
    let mut open = Vec::new();
    for (stage, own) in [
        ("sft", SFT),
        ("reward", REWARD),
        ("dpo", DPO),
        ("kto", KTO),
        ("orpo", ORPO),
        ("cpo", CPO),
        ("ppo", PPO),
        ("grpo", GRPO),
        ("online_dpo", ONLINE_DPO),
    ] {
        for names in [TRAINING, own, MODEL] {
            open.extend(unanswered(stage, names));
        }
    }
    assert!(open.is_empty(), "{}", open.join("\n"));
}

#[test]
fn common_keys_of_other_tools_are_taken_or_answered() {
    let mut open = unanswered("sft", AXOLOTL);
    open.extend(unanswered("sft", LLAMA_FACTORY));
    open.extend(unanswered("ppo", OPEN_RLHF));
    assert!(open.is_empty(), "{}", open.join("\n"));
}

#[test]
fn a_remedy_names_keys_that_the_stage_has() {
    for stage in ["sft", "reward", "dpo", "kto", "orpo", "cpo", "ppo", "grpo", "online_dpo"] {
        let keys = keys(stage);
        for name in [
            TRAINING,
            SFT,
            REWARD,
            DPO,
            KTO,
            ORPO,
            CPO,
            PPO,
            GRPO,
            ONLINE_DPO,
            MODEL,
            AXOLOTL,
            LLAMA_FACTORY,
            OPEN_RLHF,
        ]
        .join(" ")
        .split_whitespace()
        {
            let Err(hint) = resolve(name, &keys) else { continue };
            let Some(key) = hint.strip_prefix("say ") else { continue };
            let key = key.split([':', ',', ' ', ';', '.', '\'']).next().unwrap();
            assert!(key == "the" || resolve(key, &keys).is_ok(), "{stage}: {name}: {hint}");
        }
    }
}

#[test]
fn what_is_not_alike_is_not_proposed() {
    let sft = keys("sft");
    for name in ["max_prompt_length", "zzz", "reward_funcs", "num_generations"] {
        let hint = resolve(name, &sft).unwrap_err();
        assert!(!hint.contains("did you mean") && hint.len() < 120, "{name}: {hint}");
    }
    assert_eq!(resolve("learning_rat", &sft).unwrap_err(), "did you mean \"learning_rate\"?");
}
