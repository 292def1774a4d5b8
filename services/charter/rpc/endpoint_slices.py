"""Addresses of a Kubernetes Service's pods, from its EndpointSlices."""

import json
import os

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

_REQUEST_SECONDS = 10
# The label of the slices of a Service.
_SERVICE = "kubernetes.io/service-name"


def pod_addresses(service: str, namespace: str) -> list[str]:
    """IP addresses of a Service's pods that are not on their way out, ready or not.

    Asks as KUBECONFIG says where it is set, else with the ServiceAccount of this pod. Raises ``OSError`` that says what
    to do when the API server cannot be asked, or knows no pod of the Service at this moment.
    """
    configuration = client.Configuration()
    try:
        if kubeconfig := os.environ.get("KUBECONFIG"):
            config.load_kube_config(kubeconfig, client_configuration=configuration)
        else:
            config.load_incluster_config(configuration)
    except (config.ConfigException, OSError) as error:
        raise OSError(f"there is no kubeconfig and no ServiceAccount token to find {service} with: {error}") from error
    try:
        with client.ApiClient(configuration) as api:
            slices = client.DiscoveryV1Api(api).list_namespaced_endpoint_slice(
                namespace, label_selector=f"{_SERVICE}={service}", _request_timeout=_REQUEST_SECONDS
            )
    except ApiException as error:
        raise OSError(_explained(error)) from error
    except HTTPError as error:
        raise OSError(f"the Kubernetes API server cannot be reached: {error}") from error
    found = {
        address
        for one in slices.items
        for endpoint in one.endpoints or ()
        if not (endpoint.conditions and endpoint.conditions.terminating)
        for address in endpoint.addresses
    }
    if not found:
        raise OSError(f"the Service {service} in namespace {namespace} has no pods")
    return sorted(found)


def _explained(error: ApiException) -> str:
    try:
        message = json.loads(error.body or "")["message"]
    except (ValueError, TypeError, KeyError):
        message = f"{error.status} {error.reason}"
    if error.status == 403:
        return f"{message}. Add the component deploy/endpoint-slices, whose Role allows it"
    return f"the Kubernetes API server refused: {message}"
