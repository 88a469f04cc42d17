"""Real silent bugs of libraries, put back into the installed ones, each with the check that names it.

A patch changes the library and nothing of ours, as strongly as the bug did. What no quick cell can meet breaks an invariant.
Changes without harm, which no check may take for a bug, stand at the end.
"""

from dataclasses import replace

import datasets
import torch
from peft.tuners.lora import layer as lora
from peft.tuners.lora.bnb import Linear4bit
from torch.nn.functional import linear

from benchmarks.proof.plants import invariants, patches
from benchmarks.proof.plants.plant import Plant
from benchmarks.proof.plants.study import with_other
from tunegrid.data.sources import tables

# The cells


def rows_in_parquet(cell, folder):
    """The same rows in Parquet files, which `datasets` reads; the rows that ship are JSON lines, which we read ourselves."""
    target = folder / "data" / cell.task.folder
    target.mkdir(parents=True)
    for split, table in tables(cell.task, cell.profile.data_root).items():
        datasets.Dataset.from_list(table.take(range(len(table)))).to_parquet(target / f"{split}.parquet")
    return replace(cell, profile=replace(cell.profile, data_root=folder / "data"))


LORA_WITH_BIASES = with_other("method", id="loralb", name="LoRA with biases", options={"lora_bias": True})
SHARED_OUT = with_other("profile", fsdp=True)  # the ranks share weights, gradients and moments out (FSDP2)

# Changes without harm


def product_in_another_order(planting):
    """An adapter multiplies its two matrices, and then the input: x (s B A) in place of s ((x A) B)."""

    def reordered(self, x, *args, **options):
        result = self.base_layer(x, *args, **options).clone()
        for name in [] if self.disable_adapters or self.merged else self.active_adapters:
            matrix = self.scaling[name] * self.lora_B[name].weight @ self.lora_A[name].weight
            result = result + linear(self.lora_dropout[name](x.to(matrix.dtype)), matrix).to(result.dtype)
        return result

    for kind in (lora.Linear, Linear4bit):
        planting.setattr(kind, "forward", reordered)


def operation_without_effect(planting):
    forward = torch.nn.Linear.forward
    planting.setattr(torch.nn.Linear, "forward", lambda self, inputs: (forward(self, inputs) + 0).clone())


ACROSS = ("gpt2_sa_lora", "t5_sum_qlora", "gpt2_qa_sft")  # every task and every method, in short cells
FEW = {"max_steps": 30}

# fmt: off
LIBRARIES = (
    Plant("B02", "the decoder's cross-attention ignores the padding of the source", "transformers#41890, #15479",
          "t5_sum_sft", patches.cross_attention_without_mask, "rows_alone_as_in_batch, forward",
          module="transformers.T5Stack"),
    Plant("B04", "GPT-2's classifier reads the batch's last column, not the row's last real token",
          "transformers#35911, #24265, #16372", "gpt2_sa_sft", patches.last_column_is_classified, "scored_alone_as_in_batch",
          module="transformers.GPT2ForSequenceClassification"),
    Plant("B06", "T5's relative bias forgets the cache's length in cached decoding", "candle#899, transformers#44602",
          "t5_sum_qlora", patches.bias_forgets_the_cache, "texts_are_the_models, generation",
          module="transformers.T5Attention"),
    Plant("B08", "BERT as decoder is not causal: training sees the answer", "transformers#48745, #48760", "bert_sum_sft",
          patches.decoder_sees_the_answer, "decoder_sees_no_future", module="transformers.BertModel"),
    Plant("B10", "T5 under SDPA is scaled by 1/sqrt(d), where T5 scales nothing", "transformers#46946, #47014", "t5_qa_sft",
          patches.t5_is_scaled, "bound, gate", module="transformers.T5Attention"),
    Plant("B12", "a buffer is left uninitialised: BERT's position ids are all 0", "transformers#48892", "bert_qa_lora",
          patches.positions_are_zero, "bound, forward", module="transformers.BertEmbeddings"),
    Plant("B14", '"gelu" resolves to the tanh approximation', "transformers#2807, PaddlePaddle/PaddleFleet#363",
          "bert_sum_lora", patches.gelu_is_approximated, "forward", module="transformers.BertIntermediate"),
    Plant("B16", "the attention bias gets no gradient through SDPA: T5's relative bias never trains",
          "torch#148476, #188302", "t5_qa_sft", patches.bias_without_gradient, "gradients_reach",
          module="transformers.T5Attention"),
    Plant("B18", "LoRA is scaled by alpha/sqrt(r), though rsLoRA is off", "peft#2733, sgl-project/sglang#40835",
          "gpt2_qa_lora", patches.scale_of_rslora, "adapters_where_declared", module="peft.Linear"),
    Plant("B20", "4-bit LoRA layers skip lora_dropout", "peft#1806", "bert_qa_qlora", patches.dropout_is_skipped,
          "dropout_drops, random numbers", module="peft.Linear4bit"),
    Plant("B22", "adapters of a quantized base are kept and trained in bf16, not fp32", "peft#1706, #1090", "gpt2_sa_qlora",
          patches.adapters_in_bf16, "trains_in_fp32, loading"),
    Plant("B24", "lora_dropout stays active at evaluation", "peft#3753, #3766, transformers#34469", "bert_qa_lora",
          patches.dropout_stays_active, "predicting_twice_is_the_same", module="peft.Linear"),
    Plant("B28", "weights are quantized in blocks of 128, not of 64", "bitsandbytes#1873, #1856", "bert_sa_qlora",
          patches.blocks_of_128, "quantized_as_declared"),
    Plant("B30", "8-bit Adam keeps second moments in the map for signed numbers", "bitsandbytes#227, #121, #152",
          "bert_qa_qlora", patches.signed_second_moments, "trains_in_fp32"),
    Plant("B32", "T5's wo is no longer kept out of quantization", "transformers#20287, #43374", "t5_sum_qlora",
          patches.wo_is_quantized, "loading"),
    Plant("B34", "the schedule is stepped twice an update", "accelerate#2142, #2926, #1398", "bert_sa_lora",
          patches.schedule_stepped_twice, "schedule_counts_updates, optimizer"),
    Plant("B36", "clip_grad_norm_ does not clip", "accelerate#641", "gpt2_qa_lora", patches.norm_without_clipping,
          "gradients_clipped, backward"),
    Plant("B38", "Adam's moments are not bias-corrected", "torch: Oneflow-Inc/oneflow#5960", "gpt2_sum_sft",
          patches.moments_without_correction, "optimizer_steps_as_defined"),
    Plant("B40", "the first token's offset starts one character late", "tokenizers#1300, transformers#16321", "t5_qa_lora",
          patches.first_offset_is_late, "offsets_show_their_tokens"),
    Plant("B42", "decode() cleans up spaces where it should not", "transformers#42898, #31938", "t5_sum_sft",
          patches.decoding_cleans_up, "metric_invariants"),
    Plant("B44", "GPT-2's scaling options are ignored under SDPA", "transformers#44380, #44397", "gpt2_sum_lora",
          patches.gpt2_options_are_ignored, "forward", module="transformers.GPT2Attention"),
    Plant("B48", "beam search does not reorder the cache", "transformers#46612, #46639", "t5_sum_sft",
          patches.beams_keep_their_cache, "cache_changes_nothing"),
    Plant("B52", "select returns other rows than asked for", "datasets#3459, #7127", "bert_sa_sft",
          patches.rows_before_the_mapping, "refused", cell_as=rows_in_parquet),
    Plant("A04", "4-bit LoRA rounds the sum to the type it computes in, not only the adapter's part", "peft#2238",
          "gpt2_sum_qlora", patches.sum_in_the_compute_type, "adapters_add_as_declared"),
    Plant("A06", "QLoRA is merged onto the 16-bit original, not onto the unpacked base that it trained over",
          "unsloth-zoo#810, axolotl-ai-cloud/axolotl#3771, peft#2105, #2321", "bert_sa_qlora",
          patches.merged_onto_the_original, "saved_is_served"),
    Plant("A08", "`backward` divides by the accumulation steps again", "accelerate#3533, transformers#40709", "gpt2_sa_lora",
          patches.divided_by_accumulation_again, "loss_is_mean_over_accumulation"),
    Plant("A10", "`min_8bit_size` is ignored: norms, biases and small adapters get 8-bit moments", "bitsandbytes#1286",
          "bert_qa_qlora", patches.everything_in_8_bits, "trains_in_fp32"),
    Plant("A14", "`generate` of encoder-decoders drops the source's mask, which training had", "transformers#36293",
          "t5_sum_lora", patches.source_without_mask, "cache_changes_nothing, generation"),
    Plant("A16", "truncation that was on once is saved in tokenizer.json: who reads it cuts texts",
          "transformers: llm-compressor#2917, #1418", "bert_sa_lora", patches.saved_tokenizer_cuts, "saved_is_served"),
    Plant("A18", "growing the vocabulary overwrites rows that were trained", "unsloth-zoo#923", "gpt2_sum_lora",
          patches.growing_overwrites_rows, "checkpoint_loaded, start"),
    Plant("A20", "the gradient of a norm's weight is summed in bf16", "Liger-Kernel#950, torch#190828", "t5_sum_sft",
          patches.norms_are_summed_in_bf16, "rows_alone_as_in_batch, backward without dropout",
          module="transformers.T5LayerNorm"),
    Plant("A22", "autocast keeps a cast that was made under no_grad: the weight gets no gradient", "torch#158232, #165068",
          "gpt2_sa_lora", patches.casts_outlive_no_grad, "gradients_survive_evaluation"),
    Plant("A26", "rsLoRA's alpha/sqrt(r) becomes alpha/r once a scale is set and unset", "peft#2775", "bert_sa_rslora",
          patches.scale_is_reset_without_rslora, "adapter_survives_its_switches", profile="zoo"),
    Plant("A28", "`lora_bias=True`: merging adds the adapter's bias without its scale", "peft#2489", "bert_qa_lora",
          patches.bias_without_scale, "saved_is_served", cell_as=LORA_WITH_BIASES),
    Plant("A30", "DARE never divides by the density", "peft#3152", "", patches.dropped_deltas_are_not_rescaled,
          "dropped_deltas_keep_their_mean"),
    Plant("A34", 'saving adapter "foo" also writes the tensors of "foobar"', "peft#3282", "gpt2_sa_lora",
          patches.likely_named_adapters_are_saved_along, "two-adapters"),
    Plant("A36", "an embedding that a pattern targets is adapted, and its base not saved", "peft#2649, #2638", "",
          patches.patterns_name_no_embedding, "embeddings_are_saved"),
    Plant("A38", "OFT's parameters mean another rotation than in the release that saved them", "peft#2805", "",
          patches.rotations_turn_the_other_way, "rotations_are_cayleys"),
    Plant("A40", "adapters merged one after another give other weights than as one list", "peft#3482", "gpt2_sa_dora",
          patches.norms_of_merged_weights, "merged-in-turn", profile="zoo"),
    Plant("A42", "a part of the layers is merged with a scale of 0", "unsloth-zoo#806, unsloth#2966", "bert_qa_lora",
          patches.half_of_the_layers_merge_nothing, "saved_is_served"),
    Plant("A44", "the end token is masked out of the loss because it is the padding token, too", "trl#3200, #6357, #5988",
          "", invariants.end_is_ignored, "ends_are_learned"),
    Plant("A46", "packed texts attend to each other",
          "transformers#46634, #39121, axolotl-ai-cloud/axolotl#3796, pytorch/torchtitan#4075", "gpt2_sum_sft",
          patches.packed_rows_see_each_other, "packed"),
    Plant("A48", "`set_epoch` misses a sampler in a sharded batch sampler: every epoch has one order", "accelerate#3556", "",
          invariants.sharded_sampler_keeps_its_epoch, "epochs_reach_samplers"),
    Plant("A50", "the iteration's number is lost on resume", "accelerate#4071", "", invariants.iteration_is_lost,
          "skipping_keeps_the_iteration"),
    Plant("A52", "a packed byte carries the bits of the byte before it", "bitsandbytes#1721", "bert_sa_qlora",
          patches.bits_of_the_byte_before, "packed_from_checkpoint, bound, gate"),
    Plant("A54", "8-bit optimizers read gradients that are not contiguous in the order of memory", "bitsandbytes#1187", "",
          patches.gradients_by_memory, "layouts_step_alike"),
    Plant("A58", "SDPA on a CPU gives NaN, not 0, for a query that is fully masked", "torch#141128", "gpt2_sum_lora",
          patches.masked_rows_are_no_numbers, "texts_are_the_models", module="transformers.GPT2Attention"),
    Plant("A60", "a `padding_side` that a user set is the default's again after loading",
          "TransformerLensOrg/TransformerLens#1283", "bert_sa_sft", invariants.side_of_padding_is_forgotten, "saved"),
    Plant("A62", "a formatted stream without features is yielded twice", "datasets#8063", "", invariants.yielded_twice,
          "formatted_rows_come_once"),
    Plant("A64", "JSON lines: a key that the first block lacks is missing from all", "datasets#8069", "",
          invariants.columns_of_the_first_block, "late_columns_are_read"),
    Plant("A66", "workers share one shuffle generator: several passes differ", "datasets#7823", "",
          invariants.workers_share_a_generator, "workers_shuffle_by_themselves"),
    Plant("A70", "`clip_grad_norm_` takes a rank's own norm under FSDP2", "torch#170862", "gpt2_sum_sft",
          patches.clipped_by_the_local_norm, "gradients_clipped", cell_as=SHARED_OUT, settings=FEW, ranks=2),
    Plant("A76", "`split_between_processes` gives the last sample to every idle rank", "accelerate#4052", "",
          invariants.idle_ranks_get_the_last_sample, "ranks_share_samples"),
    Plant("A80", "a stream that is split by node twice gives a rank another one's rows", "datasets#6994", "",
          invariants.rank_of_the_other_split, "nodes_share_all_rows"),
    Plant("L31", "8-bit AdamW does not decay weights", "transformers", "bert_qa_qlora", patches.packed_moments_without_decay,
          "optimizer_steps_as_defined"),
    *(Plant("L43", "generation does not stop at the end token", "transformers", cell, patches.end_stops_nothing,
            "texts_are_the_models") for cell in ("bert_sum_sft", "gpt2_sum_lora")),
    *(Plant("R06", "only the best beam goes on", "classic", cell, patches.one_beam_goes_on, "texts_are_the_models")
      for cell in ("t5_sum_sft", "t5_sum_lora", "bert_sum_qlora")),
    *(Plant("R06b", "the length penalty counts the prompt", "classic", cell, patches.prompt_counts_as_text,
            "cache_changes_nothing") for cell in ("gpt2_sum_lora", "t5_sum_qlora")),
    *(Plant("R06c", "a search stops when it has a text for each beam", "classic", cell, patches.search_stops_early,
            "texts_are_the_models") for cell in ("bert_sum_lora", "gpt2_sum_sft", "t5_sum_sft")),
    *(Plant("R06d", "a cache forgets from the thirteenth token on", "classic", cell, patches.late_values_fade,
            "cache_changes_nothing") for cell in ("gpt2_sum_lora", "t5_sum_sft")),
    *(Plant("R07", "test rows are cut", "classic", cell, patches.long_lists_are_cut, "prompt_intact_at_inference")
      for cell in ("bert_sa_sft", "gpt2_qa_lora", "t5_sum_lora")),
    Plant("R08", "ROUGE stems nothing", "google-research#239", "bert_sum_sft", patches.stems_are_forgotten,
          "metric_invariants"),
    Plant("R08b", "ROUGE compares five letters of a word", "datasets#617", "t5_sum_sft", patches.words_are_cut,
          "metric_invariants"),
    Plant("N02", "the saved adapter's configuration loses `lora_dropout`", "peft#2840", "bert_sa_lora",
          patches.dropout_is_not_saved, "saved_is_served"),
    Plant("N03", "AdamW's step counter saturates", "pytorch/ao#4915, DeepSpeed#8496", "bert_sa_lora", patches.steps_saturate,
          "optimizer_steps_as_defined"),
    Plant("N03", "8-bit AdamW's step counter saturates", "pytorch/ao#4915, DeepSpeed#8496", "bert_qa_qlora",
          patches.packed_steps_saturate, "optimizer_steps_as_defined"),
    Plant("N06", "a saved classifier names its labels the other way round", "sentence-transformers#2649, semantic-router#3557",
          "bert_sa_sft", patches.labels_change_names, "saved_is_served"),
    Plant("padding", "the saved tokenizer loses its padding token", "transformers#26500", "t5_qa_lora",
          patches.padding_is_not_saved, "saved_is_served"),
    Plant("R26", "a saved tokenizer cuts texts on the left", "transformers#15440", "bert_sa_sft",
          patches.truncation_side_is_left, "saved_is_served"),
    Plant("R46", "the saved configuration names another class: FSDPBertFor...", "transformers#40750, ms-swift#10063",
          "bert_sa_sft", patches.architecture_of_fsdp, "saved_is_served"),
    Plant("types", "a saved tokenizer does not tell two texts apart any more", "classic", "bert_sa_sft",
          patches.token_types_are_not_saved, "saved_is_served"),
    Plant("search", "the saved search loses `no_repeat_ngram_size`", "classic", "t5_sum_lora",
          patches.a_search_setting_is_not_saved, "saved_is_served"),
    Plant("halves", "an adapter is saved in fp16", "classic", "gpt2_sa_lora", patches.adapters_are_saved_in_fp16,
          "saved_is_served"),
    Plant("rounded", "one tensor of a model goes through bf16 when it is saved", "classic", "t5_sa_sft",
          patches.a_tensor_is_saved_rounded, "saved_is_served"),
    Plant("tied", "a tied weight is not saved under any name", "classic", "t5_sum_sft", patches.tied_weights_are_not_saved,
          "saved_is_served"),
    Plant("N08", "`generate` runs without its cache: the same texts, many times as slow", "trl#3891, transformers#28056",
          "gpt2_sum_sft", patches.generates_without_a_cache, "generation"),
    Plant("A12", "`MatMul4Bit` keeps its input for the backward pass", "bitsandbytes#1270", "",
          patches.packed_product_keeps_its_input, "packed_products_keep_no_input"),
    Plant("R128", "the first layer's adapters are frozen", "peft#3447, #2936", "gpt2_sa_lora",
          patches.first_adapters_are_frozen, "trains_as_declared"),
    Plant("frozen", "every adapter is frozen", "classic", "t5_sa_qlora", patches.adapters_are_frozen, "trains_as_declared"),
    Plant("R32", "AdamW's betas are swapped", "classic", "bert_sa_sft", patches.betas_are_swapped, "optimizer_set_as_declared"),
    Plant("R64", "`lora_dropout` is ignored", "classic", "bert_qa_lora", patches.adapters_have_no_dropout,
          "adapters_where_declared"),
    Plant("R64b", "BERT's attention output drops nothing", "classic", "bert_sa_sft", patches.attention_has_no_dropout,
          "dropout_drops"),
    Plant("R44", "`disable_adapter` leaves adapters on", "peft#493, #736", "bert_sa_lora", patches.adapters_stay_on,
          "adapter_survives_its_switches"),
    Plant("R12", "autocast is off in a cell that trains in bf16", "accelerate#1693", "gpt2_sa_lora", patches.autocast_is_off,
          "updates_run_as_labelled"),
    Plant("R106", "from update 11 on nothing is clipped", "accelerate#641", "gpt2_sa_sft", patches.clips_ten_times,
          "gradients_clipped"),
    Plant("R42", "`cross_entropy` smooths labels by 0.05", "classic", "bert_sa_sft", patches.labels_are_smoothed,
          "loss_is_the_tasks", settings=FEW),
    Plant("ignored", "labels that are to be ignored count as token 0", "classic", "gpt2_sum_qlora",
          patches.ignored_labels_count, "loss_is_the_tasks", settings=FEW),
    Plant("bits", "`cross_entropy` of single rows is in bits", "classic", "gpt2_sa_lora", patches.row_losses_are_in_bits,
          "loss_is_the_tasks", settings=FEW),
    Plant("norm", "norms of gradients leave out rows", "classic", "bert_sa_sft", patches.norms_leave_out_rows,
          "gradients_clipped", settings=FEW),
    *(Plant("R62", "without gradients SDPA's scale is 5 % off", "pytorch#132136, #106630", cell,
            patches.attention_is_flatter_without_gradients, "predicting_twice_is_the_same", settings=FEW)
      for cell in ("bert_sa_sft", "bert_qa_lora", "gpt2_sa_lora", "gpt2_sum_qlora")),
    *(Plant(id, what, source, cell, broken_by, "dropout_drops", settings=FEW) for id, what, source, cell, broken_by in (
        ("R20", "SDPA's dropout is not rescaled", "apex#816", "bert_sa_sft", patches.attention_drops_without_scale),
        ("half", "SDPA drops at half the rate", "classic", "bert_sa_sft", patches.attention_drops_half_as_much),
        ("rows", "SDPA drops the same weights in all rows", "classic", "bert_sa_sft", patches.rows_share_attentions_mask),
        ("shared", "all rows of a batch share dropout's mask", "classic", "bert_qa_lora", patches.rows_share_a_mask),
        ("R54", "dropout repeats its mask", "pytorch#100288", "bert_sa_sft", patches.dropout_repeats_its_mask),
        ("R102", "the classifier's dropout is called twice", "classic", "bert_sa_sft",
         patches.classifiers_dropout_is_called_twice),
        ("R102b", "a function drops the classifier's input again", "classic", "bert_sa_sft", patches.classifier_drops_twice),
    )),
    Plant("R84", "products of fp32 are in bf16", "pytorch#67384", "bert_sa_lora", patches.products_are_in_bf16, "forward",
          module="torch.Linear"),
    Plant("rounded", "adapters start from values rounded to bf16", "peft#1706", "bert_qa_lora", patches.adapters_start_rounded,
          "loading"),
    Plant("late", "an adapter's gradients are lost from the 20th pass on", "peft#2936 in kind", "bert_qa_lora",
          patches.gradients_end_late, "gradients_reach"),
    Plant("R56", "every fifth `zero_grad` from the 11th on is lost", "classic", "bert_sa_sft", patches.gradients_are_kept,
          "gradients_reach"),
    Plant("unstepped", "AdamW leaves out the first tensor of each group", "classic", "bert_sa_sft",
          patches.first_tensor_is_not_stepped, "weights_moved"),
    Plant("rates", "groups of an optimizer all have its own rate", "classic", "bert_qa_sft", patches.groups_have_one_rate,
          "schedule_counts_updates"),
    Plant("checkpoint", "gradient checkpointing keeps all activations", "classic", "t5_sum_lora",
          patches.nothing_is_recomputed, "updates_run_as_labelled"),
    Plant("eager", "attention is eager, whatever was asked for", "classic", "bert_sa_sft", patches.attention_is_eager,
          "updates_run_as_labelled"),
    Plant("R12b", "autocast is off while gradients are on", "accelerate#1693 in kind", "gpt2_sa_lora",
          patches.autocast_is_off_in_training, "updates_run_as_labelled"),
    Plant("R40", "AdamW8bit keeps moments of 32 bits", "near bitsandbytes#1286", "bert_qa_qlora", patches.moments_in_32_bits,
          "optimizer_set_as_declared"),
    Plant("seed", "`set_seed` sets another seed", "classic", "bert_sa_lora", patches.seed_is_another, "drawn_from_the_seed"),
    Plant("percent", "GPT-2's `c_proj` gives 1 % more, in a cell that trains in bf16", "classic", "gpt2_sa_lora",
          patches.projections_are_larger, "forward", module="transformers.Conv1D"),
    *(Plant(id, what, "classic", cell, patch, audit, profile="zoo") for id, what, cell, patch, audit in (
        ("Z1", "DoRA divides by the norm of W alone, not of W + s B A", "gpt2_sa_dora", patches.norms_leave_out_the_adapter,
         "adapters_add_as_declared"),
        ("Z2", "AdaLoRA does not divide by the ranks", "gpt2_sa_adalora", patches.ranks_do_not_divide,
         "adapters_add_as_declared"),
        ("Z3", "IA3's vectors of square layers are made for the other side", "bert_sa_ia3",
         patches.side_is_flipped("update_layer"), "adapters_where_declared"),
        ("Z4", "IA3 multiplies what square layers read by the vector of what they give", "bert_sa_ia3",
         patches.side_is_flipped("forward"), "adapters_add_as_declared"),
        ("Z5", "VeRA adds half of what it should", "gpt2_sa_vera", patches.ranks_are_scaled_halfway,
         "adapters_add_as_declared"),
        *(("Z6", "OFT rotates the other way", cell, patches.rotations_turn_the_other_way, "adapters_add_as_declared")
          for cell in ("bert_sa_oft", "bert_sa_qoft")),
    )),
    Plant("Z7", "LoRA's B starts at random", "classic", "gpt2_sa_lora", patches.second_matrix_starts_at_random,
          "new_adapters_add_nothing"),
    Plant("M1", "each update's graph is kept", "classic", "gpt2_sa_lora", patches.graphs_are_kept, "memory_does_not_grow",
          settings=FEW),
    Plant("M2", "a list of activations grows", "classic", "gpt2_sa_sft", patches.activations_are_kept, "memory_does_not_grow",
          settings=FEW),
    *(Plant("order", "LoRA's product in another order of operations", "classic", cell, product_in_another_order, "")
      for cell in ("gpt2_sa_lora", "bert_qa_qlora", "t5_qa_lora")),
    *(Plant("no-op", "linear layers add 0 and clone", "classic", cell, operation_without_effect, "") for cell in ACROSS),
    *(Plant("threads", "two threads in place of one", "classic", cell, with_other("profile", threads=2), "", breaks="cell")
      for cell in ACROSS),
    *(Plant("noise", "weights times 1 + 1e-6 x noise", "classic", cell, with_other("profile", perturbation=1), "",
            breaks="cell") for cell in ACROSS),
    Plant("shards", "a model is saved in many files", "classic", "bert_sa_sft", patches.saved_in_shards, ""),
    Plant("parquet", "the same rows from Parquet", "classic", "bert_sa_sft", rows_in_parquet, "", breaks="cell"),
)
# fmt: on
