//! Keys of other tools without a counterpart here, and what to use instead: TRL and transformers, axolotl,
//! LLaMA-Factory, OpenRLHF and mergekit. Keys with a counterpart are in [`super::names::SYNONYMS`].

/// The remedy for some keys.
struct Answer {
    /// The keys, separated by spaces; `vllm_*` matches every key with this prefix.
    keys: &'static str,
    /// The key that a stage must have for the answer to apply; empty: none.
    needs: &'static str,
    /// What to do instead.
    remedy: &'static str,
    /// Whether leaving the key out changes no result, whatever its value.
    is_harmless: bool,
}

const fn answer(keys: &'static str, needs: &'static str, remedy: &'static str) -> Answer {
    Answer { keys, needs, remedy, is_harmless: false }
}

/// An answer for keys that concern speed, logs or the surroundings of another program: on a command line they are
/// ignored with a note.
const fn harmless(keys: &'static str, remedy: &'static str) -> Answer {
    Answer { keys, needs: "", remedy, is_harmless: true }
}

impl Answer {
    fn means(&self, name: &str) -> bool {
        self.keys.split(' ').any(|key| match key.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => key == name,
        })
    }
}

/// The first answer that applies is used.
const ANSWERS: &[Answer] = &[
    // Run name and output.
    answer(
        "resume_from_checkpoint auto_resume_from_checkpoints load_checkpoint restore_callback_states_from_checkpoint \
        ignore_data_skip",
        "",
        "leave it out: the same command resumes by itself",
    ),
    harmless(
        "report_to use_wandb wandb_* mlflow_* comet_* swanlab_* trackio_* use_tensorboard project plot_loss log_completions* \
        log_multimodal log_unique_prompts num_completions_to_print",
        "leave it out: metrics.jsonl and TensorBoard event files are always written",
    ),
    harmless("logging_dir", "leave it out: event files are written to the output directory"),
    harmless("run_name", "leave it out: a run is known by its output directory"),
    answer("push_to_hub hub_*", "", "leave it out: upload the output directory, it has Hugging Face's layout"),
    answer(
        "overwrite_output_dir overwrite_cache",
        "",
        "leave it out: nothing that is done is overwritten; remove the directory to make it anew",
    ),
    harmless(
        "save_total_limit max_ckpt_num save_only_model save_on_each_node",
        "leave it out: the newest two checkpoints are kept, and none once the stage is done",
    ),
    answer("save_strategy", "save_steps", "leave it out: save_steps alone decides"),
    answer("saves_per_epoch", "save_steps", "say save_steps: a checkpoint every so many steps"),
    answer("save_path ckpt_path", "output_dir", "say output_dir; checkpoints lie in it"),
    harmless(
        "save_safetensors disable_ds_ckpt save_hf_ckpt",
        "leave it out: results are Hugging Face directories with safetensors weights",
    ),
    harmless(
        "log_level log_level_replica log_on_each_node disable_tqdm logging_nan_inf_filter skip_memory_metrics \
        include_num_input_tokens_seen include_tokens_per_second debug",
        "leave it out: progress is shown on a terminal and written as plain lines elsewhere",
    ),
    answer("logging_strategy logging_first_step", "logging_steps", "leave it out: logging_steps alone decides"),
    answer(
        "logging_strategy logging_first_step logging_steps",
        "total_episodes",
        "leave it out: every update is logged",
    ),
    answer("do_train do_eval do_predict stage", "", "leave it out: the command says what is done"),
    // Evaluation while training.
    answer(
        "eval_strategy do_eval_during_training evaluation_strategy",
        "eval_steps",
        "leave it out: eval_steps alone decides",
    ),
    answer(
        "eval_steps evals_per_epoch per_device_eval_batch_size dataset_test_split",
        "total_episodes",
        "leave it out: PPO does not evaluate while it works; salsa evaluate does afterwards",
    ),
    answer("eval_strategy evaluation_strategy", "", "leave it out: this stage does not evaluate while it works"),
    answer("evals_per_epoch", "eval_steps", "say eval_steps: an evaluation every so many steps"),
    answer(
        "eval_on_start eval_delay eval_accumulation_steps eval_do_concat_batches eval_use_gather_object \
        batch_eval_metrics include_for_metrics prediction_loss_only bf16_full_eval fp16_full_eval eval_packing",
        "",
        "leave it out: an evaluation is the mean over all rows of eval_dataset, in the number type of the training",
    ),
    answer(
        "load_best_model_at_end metric_for_best_model greater_is_better early_stopping_patience",
        "",
        "not supported: the last model is written; eval_steps shows how the loss went",
    ),
    answer("val_size val_set_size", "eval_dataset", "say eval_dataset: {path: …, split: test}, a tenth of the prompts"),
    // Batches, steps and schedules.
    answer("max_steps", "total_episodes", "say total_episodes: responses in all, batch_size of them per update"),
    answer(
        "num_train_epochs num_epochs max_epochs num_episodes",
        "total_episodes",
        "say total_episodes: responses in all; one per prompt is a pass over the data",
    ),
    answer("num_epochs max_epochs", "num_train_epochs", "say num_train_epochs"),
    answer("max_samples", "dataset", "say the rows in the data set: dataset: {path: …, max_samples: N}"),
    answer(
        "mini_batch_size micro_batch_size local_mini_batch_size",
        "num_mini_batches",
        "say num_mini_batches: optimizer steps per pass, each on its share of batch_size",
    ),
    answer("micro_batch_size micro_train_batch_size", "per_device_train_batch_size", "say per_device_train_batch_size"),
    answer(
        "gradient_accumulation_steps",
        "num_mini_batches",
        "leave it out: batch_size says how many responses an update has, per_device_train_batch_size the micro-batch",
    ),
    answer("rollout_batch_size", "batch_size", "say batch_size: responses per update"),
    answer(
        "local_rollout_forward_batch_size micro_rollout_batch_size",
        "decode_slots",
        "say decode_slots: responses generated at once",
    ),
    answer(
        "num_total_batches local_batch_size world_size",
        "",
        "leave it out: it follows from total_episodes and batch_size, and there is one process",
    ),
    answer(
        "warmup_ratio lr_warmup_ratio",
        "warmup_steps",
        "say warmup_steps: updates over which the learning rate rises",
    ),
    answer("actor_learning_rate", "learning_rate", "say learning_rate"),
    answer(
        "lr_scheduler_kwargs cosine_min_lr_ratio",
        "lr_scheduler_type",
        "not supported: lr_scheduler_type has linear, cosine, constant and constant_with_warmup without parameters",
    ),
    answer(
        "optim optimizer optim_args optim_target_modules lora_plus_* loraplus_* adam_offload",
        "",
        "leave it out: the optimizer is AdamW, with adam_beta1, adam_beta2, adam_epsilon and weight_decay",
    ),
    answer("max_norm", "max_grad_norm", "say max_grad_norm"),
    answer(
        "loss_type label_smoothing_factor neftune_noise_alpha noisy_embedding_alpha router_aux_loss_coef aux_loss_coef",
        "",
        "not supported: the loss is the plain one",
    ),
    answer("average_tokens_across_devices", "", "leave it out: a loss is the mean over the real tokens of a step"),
    answer(
        "data_seed full_determinism",
        "seed",
        "leave it out: everything follows from seed, and runs repeat to the bit",
    ),
    // Data.
    answer("dataset_train_split", "dataset", "say dataset.split, beside dataset.path"),
    answer("dataset_test_split", "eval_dataset", "say eval_dataset.split, beside eval_dataset.path"),
    answer("dataset_config dataset_dir", "dataset", "say the path of the files: dataset: {path: FOLDER}"),
    harmless(
        "dataset_num_proc preprocessing_num_workers dataset_processes dataloader_num_workers dataloader_pin_memory \
        dataloader_persistent_workers dataloader_prefetch_factor remove_unused_columns",
        "leave it out: data are read as a whole, on all cores",
    ),
    answer(
        "dataset_streaming streaming dataloader_* dataset_prepared_path length_column_name group_by_length train_sampling_strategy label_names \
        dataset_kwargs",
        "",
        "leave it out: data are read as a whole, on all cores",
    ),
    answer(
        "dataset_text_field prompt_key input_key label_key output_key chosen_key rejected_key field_messages \
        apply_chat_template input_template",
        "dataset",
        "leave it out: columns are known by their names (docs/data.md); rename yours, or see them with salsa inspect DATA",
    ),
    answer("shuffle_dataset", "", "leave it out: the rows are shuffled anew in each epoch, from seed"),
    answer("cutoff_len sequence_len max_len", "max_length", "say max_length"),
    answer(
        "max_length",
        "response_length",
        "say max_prompt_length and response_length: tokens of prompt and response; longer prompts are left out",
    ),
    answer("generate_max_len", "response_length", "say response_length"),
    answer("prompt_max_len", "max_prompt_length", "say max_prompt_length"),
    answer(
        "max_prompt_length max_completion_length",
        "max_length",
        "say max_length: tokens of prompt and response together",
    ),
    answer("sample_packing packing_samples", "packing", "say packing"),
    answer(
        "packing_strategy packing_samples padding_free pad_to_multiple_of pad_to_sequence_len pad_token pad_token_id ignore_bias_buffers \
        multipack_*",
        "",
        "leave it out: no padding is ever computed",
    ),
    answer(
        "stop_token stop_token_id eos_token special_tokens",
        "",
        "leave it out: a response ends at the model's own end tokens (eos_token_id)",
    ),
    answer("train_on_inputs train_on_prompt", "completion_only_loss", "say completion_only_loss, the opposite of it"),
    answer(
        "assistant_only_loss mask_history",
        "completion_only_loss",
        "leave it out: of conversations, the answers of the assistant are learned (completion_only_loss)",
    ),
    answer("template", "chat_template", "say chat_template: a file, or a directory that has one"),
    // Models and adapters.
    answer("adapter finetuning_type", "use_peft", "say use_peft: true for LoRA; without it all weights are trained"),
    answer(
        "lora_target lora_target_linear lora_target_parameters",
        "lora_target_modules",
        "say lora_target_modules: all-linear, or a list of names",
    ),
    answer("lora_rank", "lora_r", "say lora_r"),
    harmless("lora_task_type", "leave it out: the stage decides it"),
    answer(
        "lora_modules_to_save additional_target",
        "",
        "leave it out: a reward model's head is trained with the adapter, nothing else is",
    ),
    answer(
        "use_dora peft_use_dora pissa_init galore_* use_galore use_badam use_apollo",
        "",
        "leave it out: plain LoRA and rsLoRA (use_rslora) are supported",
    ),
    answer(
        "load_in_8bit load_in_4bit bnb_* use_bnb_nested_quant quantization_bit quantization_method",
        "",
        "not supported: frozen weights are kept in dtype (bf16 halves them)",
    ),
    answer(
        "adapter_name_or_path lora_model_dir",
        "model_name_or_path",
        "say model_name_or_path: an adapter's directory is a model; its base is found from it",
    ),
    answer(
        "pretrain actor_model_name_or_path base_model tokenizer_name_or_path model_init_kwargs model_revision \
        model_type tokenizer_type",
        "model_name_or_path",
        "say model_name_or_path; the directory says the rest",
    ),
    harmless("trust_remote_code", "leave it out: no code of a model is ever run"),
    answer(
        "model_adapter_name ref_adapter_name",
        "",
        "leave it out: policy and reference share one base by themselves",
    ),
    answer("bf16 pure_bf16", "dtype", "say dtype: bf16 (or auto, or f32)"),
    answer("fp16", "dtype", "say dtype: bf16 (or auto, or f32); products in 16-bit IEEE numbers are not supported"),
    answer(
        "tf32 cast_lm_head_to_fp32",
        "dtype",
        "leave it out: sums are 32-bit numbers; dtype: f32 makes products so too",
    ),
    answer("use_cpu", "device", "say device: cpu"),
    answer("activation_checkpointing", "gradient_checkpointing", "say gradient_checkpointing"),
    answer(
        "gradient_checkpointing_kwargs activation_checkpointing_kwargs activation_offloading cpu_offload \
        torch_empty_cache_steps auto_find_batch_size low_cpu_mem_usage",
        "",
        "leave it out: memory is planned before a weight is read, and a plan that does not fit says what would",
    ),
    harmless(
        "attn_implementation flash_attn flash_attention sdp_attention xformers_attention use_liger_kernel \
        liger_kernel_config torch_compile* use_kernels enable_jit_checkpoint use_cache cache_implementation \
        use_unsloth enable_liger_kernel",
        "leave it out: the fastest kernels that this machine has are chosen by themselves",
    ),
    answer(
        "deepspeed zero_stage ddp_* fsdp* local_rank accelerator_config parallelism_config ds3_gather_for_generation \
        num_nodes num_gpus* actor_num_* critic_num_* ref_num_* reward_num_* colocate_* ring_attn_size tensor_parallel_size \
        context_parallel_size sequence_parallel_* ray_*",
        "",
        "leave it out: the program is one process on all cores of a machine, or on one GPU (device: cuda:N)",
    ),
    // RL.
    answer(
        "use_vllm vllm_* enable_prefix_caching use_transformers_* transformers_continuous_batching_config \
        steps_per_generation generation_batch_size generation_kwargs",
        "response_length",
        "leave it out: the program generates the responses itself, all prompts at once (decode_slots)",
    ),
    answer(
        "top_p top_k min_p repetition_penalty",
        "response_length",
        "leave it out: PPO samples from the whole softmax at temperature; a KL of truncated samples can be negative",
    ),
    answer("reward_pretrain", "reward_model_path", "say reward_model_path: a reward model's directory"),
    answer("remote_rm_url", "rewards", "say rewards: [{kind: http, url: ADDRESS}]"),
    answer("critic_pretrain", "critic", "leave it out: the critic starts from the reward model"),
    answer("ref_model ref_model_path", "reference", "say reference: {kind: sft, model: DIR}, or {kind: soup, …}"),
    answer("ref_model", "ref_model_name_or_path", "say ref_model_name_or_path"),
    answer("ref_model_name_or_path", "reference", "say reference: {kind: sft, model: DIR}, or {kind: soup, …}"),
    answer(
        "sync_ref_model ref_model_sync_steps ref_model_mixup_alpha",
        "reference",
        "say reference: {kind: ema, decay: …} or {kind: sync, …}",
    ),
    answer(
        "sync_ref_model ref_model_sync_steps ref_model_mixup_alpha",
        "ref_model_name_or_path",
        "not supported: the reference of this stage does not move",
    ),
    answer("eps_clip epsilon", "cliprange", "say cliprange"),
    answer("value_clip", "cliprange_value", "say cliprange_value"),
    answer("lambd", "lam", "say lam"),
    answer("normalize_reward", "normalize_scores", "say normalize_scores"),
    harmless("disable_dropout", "leave it out: there is no dropout but that of adapters (lora_dropout)"),
    answer("reward_funcs", "rewards", "say reward_model_path: DIR, or rewards: [{kind: …}, …]"),
    answer("reward_weights", "rewards", "not supported as a list: say weight in each of the rewards"),
    answer("n_samples_per_prompt", "num_generations", "say num_generations"),
    answer("max_completion_length", "response_length", "say response_length"),
    answer(
        "num_generations* n_samples_per_prompt num_iterations epsilon_high delta scale_rewards \
        importance_sampling_level mask_truncated_completions reward_funcs reward_weights",
        "",
        "not supported in this stage: group methods are one of their own, salsa grpo",
    ),
    answer(
        "advantage_estimator multi_objective_aggregation sapo_* vespo_* entropy_coef* \
        use_adaptive_entropy entropy_target top_entropy_quantile off_policy_mask_threshold use_bias_correction_kl \
        max_tool_calling_iterations rl trl",
        "",
        "not supported: salsa grpo has one reward model, and the keys that its --help lists",
    ),
    // DPO.
    answer(
        "precompute_ref_log_probs precompute_ref_batch_size",
        "ref_model_name_or_path",
        "leave it out: the reference is computed beside the policy",
    ),
    answer("simpo_gamma cpo_alpha", "discopop_tau", "not supported in this stage: CPO and SimPO are salsa cpo"),
    answer(
        "desirable_weight undesirable_weight",
        "",
        "not supported in this stage: single responses with labels are learned by salsa kto",
    ),
    answer(
        "loss_weights ld_alpha f_divergence_type f_alpha_divergence_coef use_weighting discopop_tau rpo_alpha \
        pref_loss pref_ftx pref_beta simpo_gamma",
        "loss_type",
        "not supported: loss_type has the losses that there are (see --help), beta their strength",
    ),
    answer("alpha", "cpo_alpha", "not supported: the rewards are log-probs, AlphaPO's are not there"),
    answer(
        "ref_model ref_model_name_or_path ref_model_path precompute_ref_log_probs precompute_ref_batch_size \
        sync_ref_model ref_model_sync_steps ref_model_mixup_alpha",
        "",
        "not supported: this stage has no reference; dpo, kto, ppo, grpo and online_dpo have one",
    ),
    answer(
        "max_completion_length max_prompt_length",
        "truncation_mode",
        "say max_length: the tokens of prompt and response together",
    ),
    harmless("generate_during_eval", "leave it out: salsa generate answers prompts with a trained model"),
    harmless("is_encoder_decoder padding_value", "leave it out: models are decoders, and nothing is padded"),
    answer("pref_beta dpo_beta", "beta", "say beta"),
    // mergekit.
    answer(
        "copy_tokenizer",
        "densities",
        "leave it out: the tokenizer is always written (tokenizer_source says which)",
    ),
    answer("write_model_card", "densities", "leave it out: soup.json records what the soup is made of"),
    answer(
        "allow_crimes",
        "densities",
        "leave it out: models that do not fit together are refused, whatever is allowed",
    ),
    answer(
        "lora_merge_cache lora_merge_dtype cuda low_cpu_memory lazy_unpickle out_shard_size \
        transformers_cache random_seed async_write multi_gpu read_to_gpu gpu_rich",
        "densities",
        "leave it out: a merge reads and writes piece by piece on all cores, in little memory",
    ),
];

/// Why `name` can be ignored, if leaving it out changes no result.
pub(super) fn ignored(name: &str) -> Option<&'static str> {
    let answer = ANSWERS.iter().find(|answer| answer.is_harmless && answer.means(name))?;
    answer.remedy.strip_prefix("leave it out: ")
}

/// The remedy for `name`, for a stage that has the keys for which `has` returns true.
pub(super) fn remedy(name: &str, has: impl Fn(&str) -> bool) -> Option<&'static str> {
    let holds = |answer: &&Answer| (answer.needs.is_empty() || has(answer.needs)) && answer.means(name);
    ANSWERS.iter().find(holds).map(|answer| answer.remedy)
}

#[cfg(test)]
mod tests;
