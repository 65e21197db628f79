import sys; sys.path.insert(0,'/tmp/wt/runs/tests')
import srlhfv_jax.parsing as p
p.Range=p.Pattern=object
import test_settings_ranges as t
ok=0
for st,n,v in t.BAD:
    try: t.parse(t.STAGES[st], t.with_value(st,n,v)); ok+=1
    except Exception as e: print(n, e)
print(ok, len(t.BAD))
