"""The node agent as kubelet: what becomes of a pod's containers."""

from __future__ import annotations

import base64
from pathlib import Path

from spotinference.api.kinds import CONFIG_MAP, JOB, POD, SECRET, Json
from spotinference.core.observed import Market
from tests.support.eventually import eventually
from tests.support.nodes import SERVE, Nodes, alive, condition, container_state, is_ready

CPU = Market("cpu", "zone-a")

ON_TERM = """
import signal, sys, time
def bye(*_):
    print("got SIGTERM", flush=True)
    time.sleep({delay})
    print("bye", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, bye)
print("up", flush=True)
time.sleep(600)
"""


def pid_of(pod: Json) -> int:
    container_id: str = pod["status"]["containerStatuses"][0]["containerID"]
    return int(container_id.removeprefix("process://"))


async def test_a_deleted_pod_gets_sigterm_and_its_grace(nodes: Nodes, ns: str) -> None:
    pod = await nodes.pod(ns, script=ON_TERM.format(delay=0.5))
    pod = await nodes.running(ns)
    await nodes.says(pod, "up")
    await nodes.kube.delete(POD, "p", ns)
    await nodes.gone(ns)
    assert "got SIGTERM\nbye" in nodes.log(pod)
    assert not alive(pid_of(pod))


async def test_a_container_that_ignores_sigterm_is_killed_with_its_children(
    nodes: Nodes, ns: str
) -> None:
    script = (
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        "apart = subprocess.Popen(['sleep', '600'], process_group=0)\n"
        "print('children', child.pid, apart.pid, 'end', flush=True)\n"
        "time.sleep(600)\n"
    )
    await nodes.pod(ns, script=script, spec={"terminationGracePeriodSeconds": 1})
    pod = await nodes.running(ns)
    await nodes.says(pod, "end")
    words = nodes.log(pod).split()
    children = [int(words[1]), int(words[2])]
    assert all(alive(pid) for pid in children)
    await nodes.kube.delete(POD, "p", ns)
    await nodes.gone(ns)
    await eventually(lambda: not any(alive(pid) for pid in [pid_of(pod), *children]), 5)


async def test_deleting_with_grace_zero_leaves_no_process(nodes: Nodes, ns: str) -> None:
    await nodes.pod(ns)
    pod = await nodes.running(ns)
    await nodes.kube.delete(POD, "p", ns, grace_s=0)
    await eventually(lambda: not alive(pid_of(pod)), 5)


async def test_pre_stop_runs_before_sigterm(nodes: Nodes, ns: str) -> None:
    container = {
        "lifecycle": {
            "preStop": {"exec": {"command": ["sh", "-c", "echo hook > /scratch/hook; sleep 0.3"]}}
        },
        "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
    }
    script = (
        "import os, signal, sys, time\n"
        "def bye(*_):\n"
        "    print('hook was there:', os.path.exists(sys.argv[1]), flush=True); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, bye)\n"
        "print('up', flush=True)\n"
        "time.sleep(600)\n"
    )
    await nodes.pod(
        ns,
        script=script,
        args=["/scratch/hook"],
        container=container,
        spec={"volumes": [{"name": "scratch", "emptyDir": {}}]},
    )
    pod = await nodes.running(ns)
    await nodes.says(pod, "up")
    await nodes.kube.delete(POD, "p", ns)
    await nodes.gone(ns)
    assert "hook was there: True" in nodes.log(pod)


async def test_a_pod_with_a_volume_at_tmp_keeps_its_temporary_files_to_itself(
    nodes: Nodes, ns: str
) -> None:
    script = (
        "import os, signal, socket, sys, tempfile, time\n"
        "where = tempfile.gettempdir()\n"
        "left = len(os.listdir(where))\n"
        "socket.socket(socket.AF_UNIX).bind(where + '/' + 's' * 60)\n"
        "print('found', left, 'in', where, flush=True)\n"
        "time.sleep(600)\n"
    )
    mount = {"volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}]}
    volumes = {"volumes": [{"name": "tmp", "emptyDir": {}}], "terminationGracePeriodSeconds": 0}
    places = []
    for name in ("one", "two"):
        await nodes.pod(ns, name, script=script, container=mount, spec=volumes)
        pod = await nodes.running(ns, name)
        await nodes.says(pod, "found")
        words = nodes.log(pod).split()
        assert words[1] == "0"
        places.append(Path(words[3]))
    assert places[0].resolve() != places[1].resolve()
    for name in ("one", "two"):
        await nodes.kube.delete(POD, name, ns)
        await nodes.gone(ns, name)
    await eventually(lambda: not any(place.is_symlink() for place in places), 5)


async def test_a_crashing_container_is_restarted_once_and_then_backs_off(
    nodes: Nodes, ns: str
) -> None:
    await nodes.pod(ns, script="import sys; print('no luck'); sys.exit(3)")
    pod = await nodes.until(
        ns, "p", lambda pod: container_state(pod, "waiting")["reason"] == "CrashLoopBackOff"
    )
    status = pod["status"]["containerStatuses"][0]
    assert status["restartCount"] == 1
    assert status["lastState"]["terminated"]["exitCode"] == 3
    assert status["state"]["waiting"]["message"].startswith("back-off 10s restarting failed")
    assert nodes.log(pod, restart=0) == nodes.log(pod, restart=1) == "no luck\n"
    await nodes.event(ns, "BackOff", "back-off 10s")


async def test_an_unknown_image_says_so(nodes: Nodes, ns: str) -> None:
    await nodes.pod(ns, container={"image": "example.com/never/heard:1"})
    pod = await nodes.until(
        ns, "p", lambda pod: container_state(pod, "waiting")["reason"] == "ErrImagePull"
    )
    assert "example.com/never/heard:1" in container_state(pod, "waiting")["message"]
    assert pod["status"]["phase"] == "Pending"


async def test_a_missing_program_is_a_start_error(nodes: Nodes, ns: str) -> None:
    await nodes.pod(ns, container={"command": ["no-such-program"], "args": []})
    pod = await nodes.until(
        ns, "p", lambda pod: pod["status"]["containerStatuses"][0]["lastState"]["terminated"]
    )
    last = pod["status"]["containerStatuses"][0]["lastState"]["terminated"]
    assert last["exitCode"] == 128
    assert "no-such-program" in last["message"]


async def test_readiness_follows_the_probe_both_ways(nodes: Nodes, ns: str) -> None:
    script = (
        "import http.server as h, os, sys\n"
        "os.chdir(sys.argv[2]); open('ok', 'w').close()\n"
        "h.test(h.SimpleHTTPRequestHandler, port=8000, bind=sys.argv[1])\n"
    )
    container = {
        "ports": [{"name": "http", "containerPort": 8000}],
        "readinessProbe": {
            "httpGet": {"path": "/ok", "port": "http"},
            "periodSeconds": 1,
            "failureThreshold": 1,
        },
        "volumeMounts": [{"name": "d", "mountPath": "/www"}],
    }
    spec = {"volumes": [{"name": "d", "emptyDir": {}}]}
    args = ["0.0.0.0", "/www"]
    await nodes.pod(ns, script=script, args=args, container=container, spec=spec)
    pod = await nodes.until(ns, "p", is_ready)
    assert pod["status"]["podIP"].startswith("127.")
    where = nodes.state_dir / "pods" / pod["metadata"]["uid"] / "volumes" / "d"
    (where / "ok").rename(where / "not-ok")
    await nodes.until(ns, "p", lambda pod: not is_ready(pod))
    await nodes.event(ns, "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode")
    (where / "not-ok").rename(where / "ok")
    await nodes.until(ns, "p", is_ready)


async def test_a_failing_liveness_probe_restarts_the_container(nodes: Nodes, ns: str) -> None:
    container = {
        "livenessProbe": {"tcpSocket": {"port": 9}, "periodSeconds": 1, "failureThreshold": 1},
    }
    await nodes.pod(ns, container=container)
    await nodes.until(
        ns, "p", lambda pod: pod["status"]["containerStatuses"][0]["restartCount"] >= 1
    )
    await nodes.event(ns, "Killing", "failed liveness probe")


async def test_a_startup_probe_holds_back_the_others(nodes: Nodes, ns: str) -> None:
    container = {
        "startupProbe": {
            "exec": {"command": ["test", "-e", "/d/started"]},
            "periodSeconds": 1,
            "failureThreshold": 60,
        },
        "livenessProbe": {
            "exec": {"command": ["test", "-e", "/d/started"]},
            "periodSeconds": 1,
            "failureThreshold": 1,
        },
        "volumeMounts": [{"name": "d", "mountPath": "/d"}],
    }
    await nodes.pod(ns, container=container, spec={"volumes": [{"name": "d", "emptyDir": {}}]})
    pod = await nodes.running(ns)
    await nodes.until(ns, "p", lambda pod: not pod["status"]["containerStatuses"][0]["started"])
    assert not is_ready(pod)
    (nodes.state_dir / "pods" / pod["metadata"]["uid"] / "volumes" / "d" / "started").touch()
    pod = await nodes.until(ns, "p", is_ready)
    status = pod["status"]["containerStatuses"][0]
    assert status["started"]
    assert status["restartCount"] == 0


async def test_environment_files_and_paths_come_from_where_the_pod_says(
    nodes: Nodes, ns: str
) -> None:
    data = {"motto": "no stream lost"}
    meta = {"name": "c", "namespace": ns}
    await nodes.kube.create(
        CONFIG_MAP, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}
    )
    secret = {"token": base64.b64encode(b"s3cret").decode()}
    await nodes.kube.create(
        SECRET, {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": secret}
    )
    script = (
        "import os, sys\n"
        "names = ('NAME', 'IP', 'MOTTO', 'TOKEN', 'GREETING')\n"
        "print(*(os.environ[n] for n in names), sep='|')\n"
        "print(open(sys.argv[1]).read(), open(os.environ['FILE']).read(), sep='|')\n"
        "print('end', flush=True)\n"
    )
    container = {
        "env": [
            {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "MOTTO", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "motto"}}},
            {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "c", "key": "token"}}},
            {"name": "GREETING", "value": "hello $(NAME) $(UNKNOWN)"},
            {"name": "FILE", "value": "/etc/conf/motto"},
        ],
        "volumeMounts": [
            {"name": "s", "mountPath": "/etc/keys"},
            {"name": "c", "mountPath": "/etc/conf"},
        ],
    }
    volumes = [{"name": "s", "secret": {"secretName": "c"}}, {"name": "c", "configMap": meta}]
    volumes[1]["configMap"] = {"name": "c"}
    await nodes.pod(
        ns,
        script=script,
        args=["/etc/keys/token"],
        container=container,
        spec={"volumes": volumes, "restartPolicy": "Never"},
    )
    pod = await nodes.until(ns, "p", lambda pod: pod["status"]["phase"] == "Succeeded")
    first, second, _ = nodes.log(pod).splitlines()
    ip = pod["status"]["podIP"]
    assert first == f"p|{ip}|no stream lost|s3cret|hello p $(UNKNOWN)"
    assert second == "s3cret|no stream lost"


async def test_a_secret_that_is_missing_is_named_until_it_comes(nodes: Nodes, ns: str) -> None:
    container = {
        "env": [{"name": "T", "valueFrom": {"secretKeyRef": {"name": "late", "key": "t"}}}]
    }
    await nodes.pod(ns, container=container)
    pod = await nodes.until(
        ns,
        "p",
        lambda pod: container_state(pod, "waiting")["reason"] == "CreateContainerConfigError",
    )
    assert container_state(pod, "waiting")["message"] == 'secret "late" not found'
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "late", "namespace": ns},
        "stringData": {"t": "x"},
    }
    await nodes.kube.create(SECRET, secret)
    await nodes.running(ns)


async def test_a_job_ends_with_its_termination_message(nodes: Nodes, ns: str) -> None:
    script = "import sys; open(sys.argv[1], 'w').write('{\"bytes\": 42}')"
    pod = await nodes.pod(ns, script=script, args=["/dev/termination-log"], create=False)
    pod["spec"]["restartPolicy"] = "Never"
    job: Json = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "j", "namespace": ns},
        "spec": {"template": {"spec": pod["spec"]}, "backoffLimit": 0},
    }
    await nodes.kube.create(JOB, job)

    async def complete() -> bool:
        done = await nodes.kube.get(JOB, "j", ns)
        return any(c["type"] == "Complete" for c in done.get("status", {}).get("conditions", []))

    await eventually(complete, 30, "job complete")
    ended = (await nodes.kube.list(POD, ns)).items[0]
    assert ended["status"]["phase"] == "Succeeded"
    assert container_state(ended, "terminated")["message"] == '{"bytes": 42}'
    assert container_state(ended, "terminated")["reason"] == "Completed"


async def test_a_job_on_failure_restarts_in_place_until_it_works(nodes: Nodes, ns: str) -> None:
    script = "import os, sys; p = sys.argv[1]; e = os.path.exists(p); open(p, 'w'); sys.exit(not e)"
    container = {"volumeMounts": [{"name": "d", "mountPath": "/d"}]}
    spec = {"restartPolicy": "OnFailure", "volumes": [{"name": "d", "emptyDir": {}}]}
    await nodes.pod(ns, script=script, args=["/d/x"], container=container, spec=spec)
    pod = await nodes.until(ns, "p", lambda pod: pod["status"]["phase"] == "Succeeded")
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 1


async def test_init_containers_run_first_one_by_one(nodes: Nodes, ns: str) -> None:
    def step(name: str, code: str) -> Json:
        return {
            "name": name,
            "image": "python:3",
            "command": ["python", "-c", code, "/d/log"],
            "volumeMounts": [{"name": "d", "mountPath": "/d"}],
        }

    write = "import sys; open(sys.argv[1], 'a').write('{}')"
    container = {"volumeMounts": [{"name": "d", "mountPath": "/d"}]}
    spec = {
        "initContainers": [step("one", write.format("1")), step("two", write.format("2"))],
        "volumes": [{"name": "d", "emptyDir": {}}],
    }
    script = "import sys, time; print(open(sys.argv[1]).read(), flush=True); time.sleep(600)"
    await nodes.pod(ns, script=script, args=["/d/log"], container=container, spec=spec)
    pod = await nodes.running(ns)
    await nodes.says(pod, "12\n")
    initialized = condition(pod, "Initialized")
    assert initialized is not None
    assert initialized["status"] == "True"


async def test_two_pods_listen_on_the_same_port(nodes: Nodes, ns: str) -> None:
    container = {
        "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        "readinessProbe": {"httpGet": {"path": "/", "port": 8000}, "periodSeconds": 1},
    }
    script = SERVE.replace("'{ip}'", "__import__('os').environ['IP']")
    for name in ("one", "two"):
        await nodes.pod(ns, name, script=script, container=container)
    pods = [await nodes.until(ns, name, is_ready) for name in ("one", "two")]
    assert len({pod["status"]["podIP"] for pod in pods}) == 2
