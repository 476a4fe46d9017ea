# Shift from the base for ranks and boundaries on CoLA and TREC, in reports/shift-cola.csv and reports/shift-trec.csv.
# Run again to resume. Further options go to both sweeps.
set -e
variants='compare.variants={rank-4-above-0: {method: lora, lora_rank: 4, lora_alpha: 8},
  rank-64-above-0: {method: lora, lora_rank: 64, lora_alpha: 128},
  rank-4-above-15: {method: freeze-15+lora, lora_rank: 4, lora_alpha: 8},
  rank-64-above-15: {method: freeze-15+lora, lora_rank: 64, lora_alpha: 128},
  rank-4-above-23: {method: freeze-23+lora, lora_rank: 4, lora_alpha: 8},
  rank-64-above-23: {method: freeze-23+lora, lora_rank: 64, lora_alpha: 128}}'
shift_from_base='evaluate.shift={examples: 64, neutral: ../shared/data/wikitext2_valid_test/test.txt}'
python -m flows.sweep --name shift-cola --table reports/shift-cola.csv --targets evaluate \
  --set 'compare.methods=[[full, freeze-15, freeze-23]]' --set "$variants" --set "$shift_from_base" \
  --set data.source=files --set data.path=../shared/data/cola --set data.answer_column=label_name \
  --set data.group_column=null --set data.splits.test=validation \
  --set 'data.label_words={acceptable: "yes", unacceptable: "no"}' --set 'data.template="{text}\nAcceptable:"' \
  --set data.limits.train=512 --set data.limits.validation=64 "$@"
python -m flows.sweep --name shift-trec --table reports/shift-trec.csv --targets evaluate \
  --set 'compare.methods=[[full, freeze-15, freeze-23]]' --set "$variants" --set "$shift_from_base" \
  --set data.source=files --set data.path=../shared/data/trec --set data.answer_column=label_name \
  --set data.group_column=null \
  --set 'data.label_words={ABBR: abbreviation, DESC: description, ENTY: thing, HUM: person, LOC: place, NUM: number}' \
  --set 'data.template="{text}\nAnswer type:"' \
  --set data.limits.train=512 --set data.limits.validation=64 "$@"
