# expect: runtime_error|memory_limit
# checker: code_unit
import threading, time
while True:
    threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
