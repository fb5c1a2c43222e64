# make demo: install and see the phenomenon.  make test: install and run the tests.
# On Linux without a GPU: make demo PIP="--extra-index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
VENV ?= .venv
PIP ?=
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP) -c constraints.txt

.PHONY: demo test lint notebook figures clean

demo: $(VENV)/.installed
	$(BIN)/interp run repeated_tokens --out results/demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# every picture under figures/, with the result that it is drawn from
figures: $(VENV)/.installed-figures
	$(BIN)/interp run repeated_tokens --out figures/repeated_tokens
	$(BIN)/interp run repeated_tokens --pool doses --pool ordinary --length 10 --batch 160 --out figures/repeated_doses
	$(BIN)/interp run attention_stripes --out figures/attention_stripes
	$(BIN)/interp show interp/organisms/organism/curve.nc --out figures/training_curve
	$(BIN)/interp census --out figures/census
	$(BIN)/interp run undertrained --out figures/undertrained
	$(BIN)/interp run dose_response --out figures/dose_response
	$(BIN)/interp run repeat_prompt --pool unexposed --pool control --sampling --out figures/repeat_prompt
	$(BIN)/interp run unused_logits --pool unexposed --pool impossible-bytes --pool "control(unexposed)" --out figures/unused_logits
	$(BIN)/interp run induction_heads --out figures/induction_heads
	$(BIN)/interp run induction_heads --model organism-llama --out figures/induction_heads_llama
	$(BIN)/interp run head_ablation --out figures/head_ablation
	$(BIN)/interp run head_ablation --model organism-untied --out figures/head_ablation_untied
	$(BIN)/interp run head_ablation --model organism-llama --out figures/head_ablation_llama
	$(BIN)/interp run head_ablation --mixed --pool unexposed --pool ordinary --out figures/head_ablation_mixed
	$(BIN)/interp run activation_patching --out figures/activation_patching
	$(BIN)/interp run path_patching --out figures/path_patching
	$(BIN)/interp run path_patching --model organism-llama --out figures/path_patching_llama
	$(BIN)/interp run head_attribution --out figures/head_attribution
	$(BIN)/interp run logit_attribution --out figures/logit_attribution
	$(BIN)/interp run logit_lens --out figures/logit_lens
	$(BIN)/interp run attention_pattern --length 10 --out figures/attention_pattern
	$(BIN)/interp run glitch_attribution --out figures/glitch_attribution
	$(BIN)/interp run glitch_attribution --mixed --out figures/glitch_attribution_single
	$(BIN)/interp run glitch_attribution --model organism-untied --out figures/glitch_attribution_untied
	$(BIN)/interp run glitch_attribution --model organism-untied --mixed --out figures/glitch_attribution_untied_single
	$(BIN)/interp run glitch_attribution --model organism-llama --out figures/glitch_attribution_llama
	$(BIN)/interp run glitch_attribution --model organism-llama --mixed --out figures/glitch_attribution_llama_single
	$(BIN)/interp run glitch_attribution --mixed --pool doses --out figures/glitch_attribution_doses
	$(BIN)/interp run embedding_repair --out figures/embedding_repair
	$(BIN)/interp run embedding_repair --mixed --out figures/embedding_repair_single
	$(BIN)/interp run embedding_repair --model organism-untied --out figures/embedding_repair_untied
	$(BIN)/interp run embedding_repair --model organism-llama --out figures/embedding_repair_llama
	$(BIN)/interp run argmaxability --pool unexposed --pool doses --pool ordinary --out figures/argmaxability
	$(BIN)/interp run argmaxability --model organism-untied --pool unexposed --pool doses --pool ordinary --out figures/argmaxability_untied
	$(BIN)/interp run argmaxability --model organism-llama --pool unexposed --pool doses --pool ordinary --out figures/argmaxability_llama
	rm -f figures/*/figure.html figures/census/census.csv figures/census/census.parquet figures/census/census.json figures/repeated_doses/log_prob_by_position.png figures/repeated_doses/halves.png

notebook: $(VENV)/.installed-notebooks
	$(BIN)/jupyter lab notebooks

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing into $(VENV) (a minute or two)"
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-%: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing into $(VENV) (a minute or two)"
	$(INSTALL) -e ".[$*]"
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) results
