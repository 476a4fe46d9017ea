# Few training examples on CoLA, in its domain and outside it, and gaps between its sources, in reports/few-cola.csv.
# Run again to resume. Further options go to the sweep: sh docs/example/few-examples.sh --set 'data.seed=[1, 2]'
set -e
exec python -m flows.sweep --name few-cola --table reports/few-cola.csv --targets evaluate \
  --set 'data.limits.train=[16, 64, 256]' --set 'data.seed=[1, 2, 3]' \
  --set data.source=files --set data.path=../shared/data/cola --set data.answer_column=label_name \
  --set data.group_column=null --set data.subgroup_column=source \
  --set 'data.splits={train: train, validation: null, test: validation, shifted: {out_of_domain: out_of_domain_validation}}' \
  --set 'data.label_words={acceptable: "yes", unacceptable: "no"}' \
  --set 'data.template="The cat sleeps.\nAcceptable: yes\n\nSleeps the cat.\nAcceptable: no\n\n{text}\nAcceptable:"' \
  --set data.limits.validation=64 --set data.limits.test=null \
  --set 'compare.methods=[[full, full+head, half, half+lora, half+distill, full+answer]]' \
  --set finetune.epochs=10 --set finetune.evaluations_per_epoch=0 "$@"
