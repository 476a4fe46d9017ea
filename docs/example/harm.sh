# A planted fault, and how much of it is left after fine-tuning it away by rank and boundary, in reports/harm.csv.
# Run again to resume. Further options go to both sweeps.
set -e
rows="$PWD/data/harm"
python docs/example/harm_rows.py "$rows"
python -m flows.sweep --name harm-planted --targets evaluate --set 'compare.methods=[[full]]' \
  --set data.source=files --set "data.path=$rows/planted" --set 'data.template="{text}"' \
  --set data.answer_column=label --set data.group_column=null --set prepare.near_duplicate=null \
  --set data.limits.train=256 --set data.limits.validation=48 --set data.limits.test=null "$@"
rm -rf "$rows/model"
planted=$(git for-each-ref --format='%(objectname)' 'refs/exps/*/*/harm-planted-1')
python -m dvc get . data/models/full-seed1 --rev "$planted" --out "$rows/model"
python -m flows.sweep --name harm --table reports/harm.csv --targets evaluate \
  --set 'compare.methods=[[full, freeze-15, freeze-23]]' \
  --set 'compare.variants={rank-4-above-0: {method: lora, lora_rank: 4, lora_alpha: 8},
    rank-64-above-0: {method: lora, lora_rank: 64, lora_alpha: 128},
    rank-4-above-15: {method: freeze-15+lora, lora_rank: 4, lora_alpha: 8},
    rank-64-above-15: {method: freeze-15+lora, lora_rank: 64, lora_alpha: 128},
    rank-4-above-23: {method: freeze-23+lora, lora_rank: 4, lora_alpha: 8},
    rank-64-above-23: {method: freeze-23+lora, lora_rank: 64, lora_alpha: 128}}' \
  --set data.source=files --set "data.path=$rows/wanted" --set 'data.template="{text}"' \
  --set data.answer_column=label --set data.group_column=null --set data.subgroup_column=town \
  --set prepare.near_duplicate=null \
  --set data.limits.train=256 --set data.limits.validation=48 --set data.limits.test=null \
  --set 'evaluate.shift={examples: 64, neutral: null}' \
  "$@" --set "model.source=$rows/model" --set "evaluate.pairs=$rows/pairs.csv"
